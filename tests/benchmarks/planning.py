"""The memory and time of planning N listed inputs: `python -m tests.benchmarks.planning 1000000`.

The listing is made up, so that no disk holds N files; everything after it is the real thing: names
become keys, are sorted by their hash, joined with the ledger, cut into units, and written down.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from pipeline.config import PackConfig
from pipeline.packing import pack as packing
from pipeline.packing.inventory import open_inventory
from pipeline.sources.listing import Listing
from pipeline.sources.source_file import SourceFile


def listed(count: int, listing: Listing) -> Iterator[SourceFile]:
    """N objects of a bucket in the order of their names, as a listing gives them."""
    for number in range(count):
        path = f"class{number // 1000:05d}/photo-{number:09d}.jpg"
        listing.seen += 1
        yield SourceFile(path, f"s3://bucket/photos/{path}", 100_000, f"{number:032x}")


def most_memory() -> float:
    """MB that this program had at most; `ru_maxrss` would count who started it, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return round(int(found[1]) / 1024, 1)


def measure(count: int) -> dict[str, float]:
    """Seconds, and the most memory that this process had, in MB."""
    with (
        patch.object(packing, "list_sources", lambda urls, listing: listed(count, listing)),
        tempfile.TemporaryDirectory() as folder,
        open_inventory() as inventory,
    ):
        config = PackConfig(source=("s3://bucket/photos",), output=folder)
        before = most_memory()
        start = time.monotonic()
        plan = packing.make_plan(config, None, inventory, 1)
        seconds = time.monotonic() - start
        assert (plan.seen, plan.files) == (count, count)
        table = plan.path.stat().st_size
    return {
        "inputs": count, "units": plan.units, "seconds": round(seconds, 1),
        "memory_mb": most_memory(), "memory_before_mb": before,
        "plan_mb": round(table / 2**20, 1),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
