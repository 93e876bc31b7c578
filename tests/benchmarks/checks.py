"""What the checks cost: reading images, reading latents and packing, with them and without.

    python -m tests.benchmarks.checks --photos ../shared/data/photos/val

One JSON line. All take turns in one run; images (or latents) a second of this process's CPU time,
all threads together, so that others on the machine count less: medians of the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from pipeline.config import PackConfig
from pipeline.data import Dataset, Loader
from pipeline.data.shard_index import RawSample
from pipeline.latents import LatentStore
from pipeline.latents.part_rows import PartRows
from pipeline.packing import shard_writer, unit
from pipeline.packing.pack import pack
from tests.benchmarks.encode import write_store

ROUNDS, LATENTS, SIZE = 5, 2000, 256


@contextmanager
def unchecked() -> Iterator[None]:
    """No checksum of an image, of a record batch, of what is packed; Arrow without validation."""

    def look(self: PartRows, data: Any, place: Any) -> Any:
        return pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)

    nothing = SimpleNamespace(
        update=lambda data: None, hexdigest=lambda: "0" * 64, digest=lambda: bytes(32)
    )
    hashes = SimpleNamespace(sha256=lambda *data: nothing)
    sums = SimpleNamespace(crc32=lambda *data: 0)
    with ExitStack() as patches:
        for owner, name, instead in (
            (RawSample, "checked_image", lambda self: self.image),
            (PartRows, "_check", look),
            (unit, "zlib", sums),
            (shard_writer, "hashlib", hashes),
        ):
            patches.enter_context(patch.object(owner, name, instead))
        yield


def per_second(work: Callable[[], int]) -> float:
    """Units of a call per second of CPU time."""
    begun = time.process_time()
    return work() / (time.process_time() - begun)


def read_images(dataset: Dataset) -> int:
    with closing(
        Loader(dataset, global_batch_size=50, image_size=SIZE, shuffle=False, threads=2)
    ) as loader:
        return sum(int(batch.valid.sum()) for batch in loader)


def read_latents(url: str) -> int:
    """The first pass of a store that was just opened, each value copied."""
    store = LatentStore.open(url)
    identity = store.snapshot.identity
    into = np.empty((identity.options.batch_size, *identity.latent_shape), np.float16)
    count = 0
    for batch in store.batches():
        for values in batch.tensors.values():
            np.copyto(into[: len(batch)], values)
        count += len(batch)
    return count


def packed(photos: Path, verify: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        result = pack(
            PackConfig.model_validate(
                {"source": [str(photos)], "output": folder, "verify": verify, "workers": 1}
            )
        )
    return result.samples


def main() -> None:
    """Measures, prints a line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, required=True)
    photos = parser.parse_args().photos
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pack(PackConfig(source=(str(photos),), output=str(folder / "data"), workers=1))
        dataset = Dataset.open(str(folder / "data"))
        write_store(folder / "store", LATENTS)
        works: dict[str, Callable[[], int]] = {
            "loader": lambda: read_images(dataset),
            "batches, first pass": lambda: read_latents(str(folder / "store")),
            "packing, full": lambda: packed(photos, "full"),
            "packing, header": lambda: packed(photos, "header"),
        }
        found: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for what, work in works.items():
                found.setdefault(what, []).append(per_second(work))
                with unchecked():
                    found.setdefault(f"{what}, unchecked", []).append(per_second(work))
    medians = {what: round(statistics.median(rates), 1) for what, rates in found.items()}
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
