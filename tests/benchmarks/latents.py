"""Reading latents beside a plain memmap and other libraries; buckets beside their bare work.

`python -m tests.benchmarks.latents` prints one JSON line; README.md says how to read it. All
readers of one shape take turns in one process, batches of 64, the page cache warm; each figure is
the best of the rounds. litdata is measured where it is installed.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.config import ModelConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.data.decode import decoded_image
from pipeline.data.shard_reader import read_samples
from pipeline.encoding.batch import encode_batch
from pipeline.encoding.cutting import Cutter
from pipeline.encoding.determinism import exact_numerics
from pipeline.encoding.shard import encode_shard
from pipeline.key_noise import normal_noise
from pipeline.latents import LatentLoader, LatentStore
from pipeline.latents.identity import EncodeOptions, View
from pipeline.packing.pack import pack
from pipeline.vae import build_vae
from tests.benchmarks.encode import encoded_images, write_store
from tests.support.small_store import identity_of

BATCH = 64
VIEWS = (View(64, 16), View(96, 16), View(128, 16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=8192, help="rows of the store to read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--photos", type=Path, help="a folder of images, for buckets")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument(
        "--parts", nargs="+", default=["4", "16"], choices=["4", "16", "libraries", "buckets"]
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="bench-latents-") as name:
        folder = Path(name)
        for part in asked.parts:
            if part == "buckets":
                report[part] = buckets(folder, asked.photos, asked.images)
                continue
            depth = 4 if part == "libraries" else int(part)
            store = write_store(folder / part, asked.latents, (depth, 32, 32))
            measure = libraries if part == "libraries" else reading
            report[part] = measure(folder / part, store, asked.rounds)
    print(json.dumps(report))


def reading(folder: Path, store: LatentStore, rounds: int) -> dict[str, Any]:
    """`LatentLoader` shuffled, with draws and without, over a memmap's sorted random batches."""
    means, logs = _memmaps(folder, store)
    count, dice = len(means), np.random.default_rng(0)

    def indices() -> Iterator[np.ndarray[Any, Any]]:
        order = dice.permutation(count)
        for start in range(0, count, BATCH):
            yield np.sort(order[start : start + BATCH])

    def plain() -> None:
        for rows in indices():
            torch.from_numpy(means[rows].astype(np.float32))

    def drawn() -> None:
        for rows in indices():
            mean = torch.from_numpy(means[rows].astype(np.float32))
            deviation = torch.from_numpy(logs[rows].astype(np.float32)).mul_(0.5).exp_()
            torch.randn(mean.shape).mul_(deviation).add_(mean)

    def loader(**more: Any) -> Callable[[], None]:
        def work() -> None:
            for batch in LatentLoader(store, global_batch_size=BATCH, **more):
                assert batch.latents.dtype == torch.float32

        return work

    works = {
        "memmap": plain, "loader": loader(), "memmap_drawn": drawn,
        "loader_drawn": loader(sample=True),
    }  # fmt: skip
    rates = _rates(works, count, rounds)
    return {
        **{f"{name}_per_second": round(rate) for name, rate in rates.items()},
        "over_memmap": round(rates["loader"] / rates["memmap"], 3),
        "drawn_over_memmap": round(rates["loader_drawn"] / rates["memmap_drawn"], 3),
        "noise_alone_per_second": round(_noise_rate(store.shapes[0])),
        "consumer_cpu_ms": {
            name: round(_consumer(store, **more), 3)
            for name, more in (("mean", {}), ("draws", {"sample": True}))
        },
    }


def libraries(folder: Path, store: LatentStore, rounds: int) -> dict[str, Any]:
    """`.batches()` beside what docs/latents.md shows of `datasets`; `to_torch` beside litdata."""
    whole = pa.Table.from_batches([batch.record for batch in store.batches()])
    count = len(store)
    datasets = importlib.import_module("datasets")
    in_datasets = datasets.Dataset(whole).with_format("arrow")

    def means(table: pa.Table) -> np.ndarray[Any, Any]:
        values = table["mean"].combine_chunks().flatten().to_numpy()
        found: np.ndarray[Any, Any] = values.reshape(-1, *store.shapes[0])
        return found

    def ours() -> None:
        for batch in store.batches():
            np.array(batch.tensors["mean"])

    def with_datasets() -> None:
        for start in range(0, count, BATCH):
            np.array(means(in_datasets[start : start + BATCH]))

    def with_torch() -> None:
        for _ in DataLoader(store.to_torch(), BATCH, shuffle=True, collate_fn=_stacked):
            pass

    works = {"batches": ours, "datasets": with_datasets, "to_torch": with_torch}
    if importlib.util.find_spec("litdata"):
        works["litdata"] = _litdata(folder, store)
    rates = _rates(works, count, rounds)
    found: dict[str, Any] = {f"{name}_per_second": round(rate) for name, rate in rates.items()}
    found["datasets_over_batches"] = round(rates["datasets"] / rates["batches"], 3)
    if "litdata" in rates:
        found["to_torch_over_litdata"] = round(rates["to_torch"] / rates["litdata"], 2)
    on_ray, bare = _on_ray(folder, store)
    return found | {
        "ray_per_second": round(on_ray), "bare_ray_per_second": round(bare),
        "ray_over_batches": round(on_ray / rates["batches"], 3),
        "ray_over_bare_ray": round(on_ray / bare, 2),
    }  # fmt: skip


def buckets(folder: Path, photos: Path, images: int) -> dict[str, Any]:
    """Three sizes of buckets in one pass, over decoding once and encoding each size by itself."""
    output, source = str(folder / "data"), folder / "images"
    _write_crops(photos, source, images)
    pack(PackConfig(source=(str(source),), output=output, shard_bytes=8 * 2**20))
    torch.manual_seed(0)
    config = ModelConfig(kind="autoencoder_kl", widths=(8, 8, 16, 16), groups=4)
    vae = build_vae(config, PreprocessConfig(image_size=64)).eval()
    vae.digest = "a" * 64
    dataset = Dataset.open(output)
    whole = identity_of(vae, batch_size=BATCH, views=VIEWS)
    sources = encoded_images(output, len(dataset))

    def decode() -> None:
        for data in sources:
            with decoded_image(data, channels=3, shrink_to=128):
                pass

    def encode(number: int) -> Callable[[], None]:
        options = EncodeOptions("fp32", BATCH, views=VIEWS[number : number + 1])
        batches = _cut_batches(dataset, vae, options)

        def work() -> None:
            with exact_numerics():
                for pixels in batches:
                    valid = np.ones(len(pixels), dtype=bool)
                    encode_batch(vae, pixels, [""] * len(pixels), valid, options)

        return work

    def job() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as store:
            for shard in dataset.shards:
                encode_shard(vae, dataset, shard, whole, store, threads=1)

    parts = {"decode": decode, **{f"encode_{n}": encode(n) for n in range(3)}, "job": job}
    seconds = dict.fromkeys(parts, np.inf)
    for _ in range(2):
        for name, work in parts.items():
            seconds[name] = min(seconds[name], _seconds(work))
    bare = sum(took for name, took in seconds.items() if name != "job")
    return {
        "images": len(dataset),
        **{f"{name}_seconds": round(took, 2) for name, took in seconds.items()},
        "job_over_bare": round(seconds["job"] / bare, 3),
    }


def _write_crops(photos: Path, folder: Path, count: int) -> None:
    """JPEGs of many shapes: parts of photographs, 160 to 480 pixels a side."""
    folder.mkdir()
    dice, files = np.random.default_rng(0), sorted(photos.rglob("*.jpg"))
    for number in range(count):
        with Image.open(files[number % len(files)]) as image:
            wide, tall = (min(side, int(dice.integers(160, 481))) for side in image.size)
            left, top = (
                int(dice.integers(0, side - cut + 1))
                for side, cut in zip(image.size, (wide, tall), strict=True)
            )
            image.crop((left, top, left + wide, top + tall)).save(
                folder / f"{number:04d}.jpg", quality=90
            )


def _cut_batches(dataset: Dataset, vae: Any, options: EncodeOptions) -> list[torch.Tensor]:
    """What the network gets, shape by shape."""
    cutter, waiting, found = Cutter(vae.preprocess, options), dict[Any, list[Any]](), []
    for shard in dataset.shards:
        for block in read_samples(dataset, shard, BATCH, ()):
            for position, sample in block:
                for place, pixels in cutter.cut(position, sample).cuts.items():
                    waiting.setdefault(place, []).append(pixels)
        for rows in waiting.values():
            found += [torch.stack(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
        waiting.clear()
    return found


def _memmaps(folder: Path, store: LatentStore) -> tuple[np.ndarray[Any, Any], ...]:
    """The store's moments as a trainer keeps them by itself: one float16 array each."""
    found = []
    for name in ("mean", "logvar"):
        array = np.concatenate([np.array(batch.tensors[name]) for batch in store.batches()])
        np.save(folder / f"{name}.npy", array)
        found.append(np.load(folder / f"{name}.npy", mmap_mode="r"))
    return tuple(found)


def _noise_rate(shape: tuple[int, int, int]) -> float:
    """Images/s of drawing by key alone: what a draw that repeats itself costs at least."""
    keys = [f"shard/{n}" for n in range(BATCH)]
    normal_noise(keys, 0, shape)
    took = min(_seconds(lambda: normal_noise(keys, 0, shape)) for _ in range(20))
    return BATCH / took


def _consumer(store: LatentStore, **more: Any) -> float:
    """CPU milliseconds of the consumer's own thread in `next()`, with 20 ms of work between."""
    spent = list[float]()
    loader = LatentLoader(store, global_batch_size=BATCH, **more)
    while len(spent) < 40:
        for _ in _timed(loader, spent):
            time.sleep(0.02)
    return float(np.median(spent[5:])) * 1e3


def _timed(loader: LatentLoader, spent: list[float]) -> Iterator[Any]:
    batches = iter(loader)
    while True:
        started = time.thread_time()
        batch = next(batches, None)
        if batch is None:
            return
        spent.append(time.thread_time() - started)
        yield batch


def _stacked(items: list[dict[str, Any]]) -> torch.Tensor:
    return torch.stack([item["mean"] for item in items])


def _litdata(folder: Path, store: LatentStore) -> Callable[[], None]:
    litdata = importlib.import_module("litdata")
    items = [{**latent.tensors, "key": latent.key} for latent in store]
    writer = litdata.streaming.writer.BinaryWriter(str(folder / "lit"), chunk_bytes="64MB")
    for number, item in enumerate(items):
        writer.add_item(number, item)
    writer.done()
    writer.merge(1)
    dataset = litdata.StreamingDataset(str(folder / "lit"), shuffle=True)

    def work() -> None:
        for _ in litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=0):
            pass

    return work


def _on_ray(folder: Path, store: LatentStore) -> tuple[float, float]:
    """Images/s of docs/latents.md's snippet, and of Ray with one batch of it over and over.

    The start of Ray and of its workers is left out of both.
    """
    from pipeline.cluster.ray_cluster import ray_cluster

    with ray_cluster(2):
        import ray

        url, shards = store.url, len(store.snapshot.shards)
        record = next(store.batches()).record
        path, again = str(folder / "one.arrow"), len(store) // shards // len(record)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, record.schema) as writer:
            writer.write_batch(record)

        def of_shards(numbers: pa.Table) -> Iterator[pa.Table]:
            mine = LatentStore.open(url)
            for number in numbers["id"].to_pylist():
                for batch in mine.shard_batches(number):
                    yield pa.Table.from_batches([batch.record])

        def bare(numbers: pa.Table) -> Iterator[pa.Table]:
            with pa.memory_map(path) as file:
                table = pa.ipc.open_file(file).read_all()
                for _ in range(len(numbers) * again):
                    yield table

        def read(work: Callable[[pa.Table], Iterator[pa.Table]]) -> int:
            found = ray.data.range(shards).map_batches(
                work, batch_size=None, batch_format="pyarrow"
            )
            return sum(map(len, found.iter_batches(batch_size=BATCH, batch_format="pyarrow")))

        ray.data.DataContext.get_current().enable_progress_bars = False
        count = [read(work) for work in (of_shards, bare)]
        assert count == [len(store), shards * again * len(record)]
        rates = _rates({"ours": lambda: read(of_shards), "bare": lambda: read(bare)}, 1, 4)
        return count[0] * rates["ours"], count[1] * rates["bare"]


def _rates(works: Mapping[str, Callable[[], object]], count: int, rounds: int) -> dict[str, float]:
    """Images/s of each, the best of rounds in which all take turns."""
    best = dict.fromkeys(works, np.inf)
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], _seconds(work))
    return {name: count / seconds for name, seconds in best.items()}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
