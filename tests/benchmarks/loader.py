"""The loader against bare decoding and stock webdataset; one JSON line.

    python -m tests.benchmarks.loader --photos ../shared/data/photos \\
        --lossless ../shared/data/lossless_photos --work runs/loader

Every ratio is of measurements that take turns in one run. `--parts` chooses some: local (batches of
256 pixels from local tars), large (the same from JPEGs of 2000 pixels), cached (from decoded images
on disk), small (samples of 4 and 100 KB without decoding), quality (distinct classes in a batch),
scale (10^9 samples in 10^5 shards), memory (five epochs). From S3: tests/benchmarks/loader_s3.py.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.config import LoaderConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader
from pipeline.data.fetch import SampleReader
from pipeline.data.manifest import Manifest, ShardRecord
from pipeline.data.order import Order
from pipeline.data.preprocess import preprocess_into
from pipeline.packing.pack import pack

SIZE, BATCH, THREADS, ROUNDS = 256, 64, 2, 5
WORLDS = (1, 2, 3, 5, 7, 8, 16)
PREPROCESS = PreprocessConfig(image_size=SIZE)


def packed(source: Path, output: str) -> Dataset:
    """The dataset, packed unless that was done."""
    if not storage.exists(storage.join(output, "manifest.json")):
        pack(PackConfig(source=(str(source),), output=output, workers=2))
    return Dataset.open(output)


def rate(work: Callable[[], int]) -> float:
    """Units per second of one call."""
    started = time.perf_counter()
    return work() / (time.perf_counter() - started)


def steady(loader: Loader, epochs: int = 3) -> float:
    """Images per second in steady state.

    The clock starts after one epoch: what the threads prepared before their turn does not count.
    """
    ours(loader)
    started = time.perf_counter()
    images = sum(ours(loader) for _ in range(epochs))
    return images / (time.perf_counter() - started)


def in_turn(*rates: Callable[[], float]) -> list[float]:
    """Medians of ROUNDS rounds in which each has its turn."""
    rounds = [[find() for find in rates] for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def bare_decode(images: list[bytes]) -> int:
    """Decode, crop and resize from RAM, on as many threads and nothing else."""
    out = torch.from_numpy(np.empty((len(images), 3, SIZE, SIZE), np.uint8))

    def work(first: int) -> None:
        for number in range(first, len(images), THREADS):
            preprocess_into(out[number], images[number], PREPROCESS)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    return len(images)


def ours(loader: Loader) -> int:
    """One epoch."""
    return sum(int(batch.valid.sum()) for batch in loader)


def stock(dataset: Dataset) -> int:
    """One epoch of stock webdataset with two workers, as its documentation has it."""
    urls = [dataset.shard_url(shard) for shard in dataset.shards]

    def resized(image: Image.Image) -> torch.Tensor:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)

    data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    data = data.shuffle(500).decode("pil").to_tuple("jpg;jpeg;png;webp").map_tuple(resized)
    loader = webdataset.WebLoader(data.batched(BATCH), batch_size=None, num_workers=THREADS)
    return sum(len(images) for (images,) in loader)


def local(arguments: argparse.Namespace) -> dict[str, float]:
    """Photos to batches from local tars."""
    dataset = packed(arguments.photos, str(arguments.work / "photos"))
    reader = SampleReader(dataset, 1, 0, ())
    images = [reader.read(sample).image for sample in range(len(dataset))]
    with closing(
        Loader(dataset, global_batch_size=BATCH, image_size=SIZE, threads=THREADS)
    ) as loader:
        bare, full, other = in_turn(
            lambda: rate(lambda: bare_decode(images * 3)),
            lambda: steady(loader),
            lambda: rate(lambda: stock(dataset)),
        )
    again = Loader(dataset, global_batch_size=BATCH, image_size=SIZE, threads=THREADS)
    with closing(again):
        state = {**again.state_dict(), "epoch": 3, "batches": again.steps_per_epoch // 2}
        again.load_state_dict(state)
        started = time.perf_counter()
        next(iter(again))
        first = time.perf_counter() - started
    return {
        "bare_images_per_second": bare,
        "loader_images_per_second": full,
        "webdataset_images_per_second": other,
        "to_bare_decode": full / bare,
        "to_webdataset": full / other,
        "first_batch_after_resume_s": first,
    }


def small(arguments: argparse.Namespace) -> dict[str, float]:
    """4 KB samples without decoding; and of 100 KB, where copying is what costs."""
    found = undecoded(tiny_dataset(arguments.work, 20_000, 4000))
    of_100_kb = undecoded(tiny_dataset(arguments.work, 3000, 100_000))
    return found | {f"{name}_of_100_kb": value for name, value in of_100_kb.items()}


def undecoded(dataset: Dataset) -> dict[str, float]:
    """Samples read with their checksum, against stock webdataset's reading and bare crc + copy."""
    urls = [dataset.shard_url(shard) for shard in dataset.shards]

    reader = SampleReader(dataset, 64, 2**28, ())

    def by_id() -> int:
        return sum(len(reader.read(s).checked_image()) > 0 for s in range(len(dataset)))

    def in_order() -> int:
        count = 0
        for number, shard in enumerate(dataset.shards):
            for first in range(0, shard.samples, 256):
                last = min(first + 256, shard.samples)
                for raw in reader.read_positions(number, first, last):
                    count += len(raw.checked_image()) > 0
        return count

    def theirs() -> int:
        data = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        return sum(len(sample["png"]) > 0 for sample in data)

    def bare() -> int:
        data = memoryview(Path(dataset.shard_url(dataset.shards[0])).read_bytes())
        index = dataset.read_index(0)
        places = zip(index.offsets.tolist(), index.sizes.tolist(), strict=True)
        return sum(zlib.crc32(bytes(data[at : at + size])) >= 0 for at, size in places)

    random, ordered, other, floor = in_turn(
        *(partial(rate, work) for work in (by_id, in_order, theirs, bare))
    )
    return {
        "by_id_per_second": random,
        "in_order_per_second": ordered,
        "by_id_to_webdataset": random / other,
        "in_order_to_webdataset": ordered / other,
        "in_order_to_crc_and_copy": ordered / floor,
    }


def tiny_dataset(work: Path, count: int, size: int, output: str | None = None) -> Dataset:
    """`count` PNG images of about `size` bytes that decode in no time."""
    folder = work / f"tiny-{count}-{size}"
    if not folder.exists():
        folder.mkdir(parents=True)
        random = np.random.default_rng(0)
        for number in range(count):
            buffer = io.BytesIO()
            pixels = random.integers(0, 256, (8, max(8, size // 24), 3), np.uint8)
            Image.fromarray(pixels).save(buffer, "png", compress_level=0)
            (folder / f"{number:06}.png").write_bytes(buffer.getvalue())
    return packed(folder, output or str(work / f"packed-{count}-{size}"))


def large(arguments: argparse.Namespace) -> dict[str, float]:
    """JPEGs of 2000 pixels made from the lossless photographs, to batches of 256 pixels."""
    folder = Path(arguments.work) / "large"
    if not folder.exists():
        folder.mkdir(parents=True)
        for path in sorted(arguments.lossless.glob("*.png")):
            photo = Image.open(path).convert("RGB")
            for turn in range(6):
                wide = photo.rotate(2 * turn).resize((2000, 2000 * photo.height // photo.width))
                wide.save(folder / f"{path.stem}-{turn}.jpg", quality=90)
    dataset = packed(folder, str(arguments.work / "large-packed"))
    with closing(Loader(dataset, global_batch_size=16, image_size=SIZE, threads=THREADS)) as loader:
        full, other = in_turn(lambda: steady(loader), lambda: rate(lambda: stock(dataset)))
    return {"loader_images_per_second": full, "to_webdataset": full / other}


def cached(arguments: argparse.Namespace) -> dict[str, float]:
    """Batches of 256 pixels from a cache of decoded images."""
    dataset = packed(arguments.photos, str(arguments.work / "photos"))
    with (
        tempfile.TemporaryDirectory(dir=arguments.work) as folder,
        closing(
            Loader(
                dataset, global_batch_size=BATCH, image_size=SIZE, threads=THREADS,
                settings=LoaderConfig(cache_folder=folder, cache_decoded=True),
            )
        ) as loader,
    ):  # fmt: skip
        return {"images_per_second": statistics.median(steady(loader) for _ in range(ROUNDS))}


def scale(arguments: argparse.Namespace) -> dict[str, float]:
    """10^9 samples in 10^5 shards: parse the manifest, plan, and find a batch at a random place."""
    shards = tuple(
        ShardRecord(
            path=f"shards/{number:06}.tar", bytes=10**9, sha256=f"{number:064x}", samples=10_000,
            index_path=f"index/{number:06}.arrow", index_sha256=f"{number:064x}", removed=(),
        )
        for number in range(100_000)
    )  # fmt: skip
    path = Path(arguments.work) / "manifest.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(Manifest(1, None, shards).to_bytes())
    words = [sys.executable, "-c", _OPEN, str(path)]
    found = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(found))


_OPEN = """
import json, resource, sys, time
from pipeline.data.dataset import Dataset
from pipeline.data.fetch import SampleReader
from pipeline.data.layout import plan_order
from pipeline.data.manifest import Manifest
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
imports, started = peak(), time.perf_counter()
dataset = Dataset('/nowhere', Manifest.from_bytes(open(sys.argv[1], 'rb').read(), '/nowhere'))
order = plan_order(dataset, 4096, 0, 2**34, shuffle=True, tail='pad')
reader = SampleReader(dataset, order.chunk, 2**28, ())
for sample in order.batch(7, 123_456, range(4096)).tolist():
    reader.places.find(sample)
seconds = time.perf_counter() - started
print(json.dumps({'seconds': seconds, 'peak_mib': peak(), 'of_it_imports_mib': imports}))
"""
"""A process of its own: its memory is nobody else's."""


def memory(arguments: argparse.Namespace) -> dict[str, object]:
    """Resident memory after each of five epochs."""
    dataset = packed(arguments.photos, str(arguments.work / "photos"))
    pages = []
    with closing(
        Loader(dataset, global_batch_size=BATCH, image_size=SIZE, threads=THREADS)
    ) as loader:
        for _ in range(5):
            ours(loader)
            resident = int(Path("/proc/self/statm").read_text().split()[1])
            pages.append(resident * os.sysconf("SC_PAGE_SIZE") / 2**20)
        bound = loader.memory_bound_bytes / 2**20
    return {"resident_mib": pages, "last_to_second": pages[-1] / pages[1], "bound_mib": bound}


def quality(arguments: argparse.Namespace) -> dict[str, float]:
    """Mean number of distinct classes among 256 samples of a thousand classes, early and late.

    `packed`: samples in the order of a hash, as jobs.pack writes them; `sorted`: adopted tars in
    the order of their classes; `uniform`: what a true shuffle gives.
    """
    samples, classes, size = 1_281_167, 1000, 256
    order = Order(samples, size, 0, 36, 8)
    by_class = np.arange(samples) * classes // samples
    by_hash = np.random.default_rng(0).permutation(by_class)
    picked = np.linspace(0, order.steps - 2, 200).astype(int).tolist()
    batches = [order.batch(0, index, range(size)) for index in picked]
    return {
        "packed": float(np.mean([len(np.unique(by_hash[ids])) for ids in batches])),
        "sorted": float(np.mean([len(np.unique(by_class[ids])) for ids in batches])),
        "uniform": classes * (1 - (1 - 1 / classes) ** size),
    }


PARTS = {
    "local": local, "large": large, "cached": cached, "small": small, "quality": quality,
    "scale": scale, "memory": memory,
}  # fmt: skip


def main() -> None:
    """Prints one JSON line of all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="A folder of real photos.")
    parser.add_argument("--lossless", type=Path, help="A folder of PNG photographs (part large).")
    parser.add_argument("--work", type=Path, required=True, help="For packed datasets.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({name: PARTS[name](arguments) for name in arguments.parts}))


if __name__ == "__main__":
    main()
