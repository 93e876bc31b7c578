"""Packing against what it is made of: with `full` against bare decoding, with `header` against
webdataset's ShardWriter. Prints one JSON line; ratios are taken within one run.

`python tests/benchmarks/packing.py --photos ../shared/data/photos`
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import simplejpeg

from pipeline.config import PackConfig
from pipeline.packing.pack import pack

CORES = len(os.sched_getaffinity(0))


def replicate(photos: Path, target: Path, copies: int) -> list[Path]:
    """Distinct files: each copy says its number in a JPEG comment."""
    sources = sorted(photos.rglob("*.jpg"))
    assert sources, f"{photos}: holds no .jpg"
    for copy in range(copies):
        comment = f"copy {copy}".encode()
        segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (target / str(copy)).mkdir(parents=True)
        for number, source in enumerate(sources):
            data = source.read_bytes()
            (target / f"{copy}/{number:05d}.jpg").write_bytes(data[:2] + segment + data[2:])
    return sorted(target.rglob("*.jpg"))


def bare_decode(images: list[bytes]) -> None:
    """All pixels of all images, from RAM, one thread per core."""
    with ThreadPoolExecutor(CORES) as pool:
        for _ in pool.map(simplejpeg.decode_jpeg, images, chunksize=16):
            continue


def stock_write(files: list[Path], folder: Path) -> None:
    """The loop that webdataset's documentation shows; its shards are not checked or indexed."""
    import webdataset  # here: pack's processes import this file, and this would bring them torch

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=256 * 2**20, verbose=0) as out:
        for number, file in enumerate(files):
            name = f"{number:08d}"
            out.write({"__key__": name, "jpg": file.read_bytes(), "json": {"path": str(file)}})


def run_pack(source: Path, folder: Path, verify: str) -> None:
    result = pack(PackConfig(source=(str(source),), output=str(folder), verify=verify))
    assert result.rejected == 0


def seconds(work: Callable[[], None], folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # what the one before has written must not be paid by this one
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(photos: Path, copies: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in", Path(name) / "out"
        files = replicate(photos, source, copies)
        images = [file.read_bytes() for file in files]
        works: dict[str, Callable[[], None]] = {
            "bare_decode": lambda: bare_decode(images),
            "pack_full": lambda: run_pack(source, out, "full"),
            "shard_writer": lambda: stock_write(files, out),
            "pack_header": lambda: run_pack(source, out, "header"),
        }
        took: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(rounds):
            for what, work in works.items():
                took[what].append(seconds(work, out))
    count = len(images)
    result = {f"{what}_images_per_second": count / min(times) for what, times in took.items()}
    for mine, theirs in (("pack_full", "bare_decode"), ("pack_header", "shard_writer")):
        ratios = [b / a for a, b in zip(took[mine], took[theirs], strict=True)]
        result[f"{mine}_of_{theirs}"] = statistics.median(ratios)
    return {"images": count, "cores": CORES, **{k: round(v, 3) for k, v in result.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg")
    parser.add_argument("--copies", type=int, default=8, help="how often each is packed")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(measure(given.photos, given.copies, given.rounds)))


if __name__ == "__main__":
    main()
