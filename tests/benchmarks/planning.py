"""The memory and time of planning N listed inputs: `python -m tests.benchmarks.planning 1000000`.

The files are made up, so that no disk holds N of them; everything after that is the real thing:
names become keys, are sorted by their hash, joined with the ledger, cut into units, and written
down. With `table` after N, a real CSV of N paths with labels is what lists them.
"""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

from pipeline import storage
from pipeline.config import PackConfig
from pipeline.packing import pack as packing
from pipeline.packing.inventory import open_inventory
from pipeline.sources import input_lists
from pipeline.sources.listing import Listing
from pipeline.sources.source_file import SourceFile


def paths(count: int) -> Iterator[str]:
    """Names as a sorted listing gives them, a thousand to a folder."""
    for number in range(count):
        yield f"class{number // 1000:05d}/photo-{number:09d}.jpg"


def listed(count: int, _urls: Iterable[str], listing: Listing) -> Iterator[SourceFile]:
    """N objects of a bucket."""
    for path in paths(count):
        listing.seen += 1
        yield SourceFile(path, f"s3://bucket/photos/{path}", 100_000, path[-14:])


def made_up(target: str) -> storage.ObjectInfo:
    """What storage would tell of a file that a row names."""
    return storage.ObjectInfo(target, 100_000, target[-14:])


def most_memory() -> float:
    """MB that this program had at most; `ru_maxrss` would count who started it, too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux tells it"
    return round(int(found[1]) / 1024, 1)


def write_table(count: int, folder: str) -> str:
    """A list of N paths, each with a label and a number."""
    path = Path(folder) / "list.csv"
    with path.open("w") as file:
        file.write("path,label,number\n")
        file.writelines(f"{name},{name[:10]},{at}\n" for at, name in enumerate(paths(count)))
    return str(path)


def measure(count: int, form: str = "listing") -> dict[str, float]:
    """Seconds, and the most memory that this process had, in MB."""
    with tempfile.TemporaryDirectory() as folder, open_inventory() as inventory:
        is_table = form == "table"
        source = write_table(count, folder) if is_table else "s3://bucket/photos"
        config = PackConfig(source=(source,), output=f"{folder}/out")
        before = most_memory()
        start = time.monotonic()
        with ExitStack() as made:
            if is_table:
                made.enter_context(patch.object(input_lists, "_found", made_up))
            else:
                made.enter_context(patch.object(packing, "list_sources", partial(listed, count)))
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
    print(json.dumps(measure(int(sys.argv[1]), *sys.argv[2:])))
