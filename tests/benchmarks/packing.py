"""Packing against what it is made of: with `full` against bare decoding, with `header` against
webdataset's ShardWriter. Prints one JSON line; ratios are taken within one run.

`python tests/benchmarks/packing.py --photos ../shared/data/photos --form tar`
"""

import argparse
import json
import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import simplejpeg
from pyarrow import parquet

from pipeline.config import PackConfig
from pipeline.packing.pack import pack
from tests.support.presence import present

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


def as_tar(files: list[Path], target: Path) -> Path:
    """One tar of all files."""
    with tarfile.open(target / "all.tar", "w") as tar:
        for file in files:
            tar.add(file, f"{file.parent.name}/{file.name}")
    return target / "all.tar"


def as_parquet(files: list[Path], target: Path) -> Path:
    """One table as the `datasets` library writes them, 500 rows to a group."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with parquet.ParquetWriter(target / "all.parquet", pa.schema([("image", kind)])) as writer:
        for first in range(0, len(files), 500):
            rows = [{"bytes": f.read_bytes(), "path": f.name} for f in files[first : first + 500]]
            writer.write_table(pa.table({"image": pa.array(rows, kind)}))
    return target / "all.parquet"


def read_source(source: Path) -> Iterator[tuple[str, bytes]]:
    """The plain loop over a folder, a tar or a table: paths and bytes."""
    if source.is_dir():
        for file in sorted(source.rglob("*.jpg")):
            yield str(file), file.read_bytes()
    elif source.suffix == ".tar":
        with tarfile.open(source) as tar:
            for member in tar:
                yield member.name, present(tar.extractfile(member)).read()
    else:
        for batch in parquet.ParquetFile(source).iter_batches(100):
            for row in batch.to_pylist():
                yield row["image"]["path"], row["image"]["bytes"]


def stock_write(source: Path, folder: Path) -> None:
    """The loop that webdataset's documentation shows; its shards are not checked or indexed."""
    import webdataset  # here: pack's processes import this file, and this would bring them torch

    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=256 * 2**20, verbose=0) as out:
        for number, (path, data) in enumerate(read_source(source)):
            out.write({"__key__": f"{number:08d}", "jpg": data, "json": {"path": path}})


def run_pack(source: Path, folder: Path, verify: str) -> None:
    result = pack(PackConfig(source=(str(source),), output=str(folder), verify=verify))
    assert result.rejected == 0


class Took(NamedTuple):
    """Seconds on the clock, and of the cores: the second says what it costs on a loaded machine."""

    wall: float
    cpu: float


def seconds(work: Callable[[], None], folder: Path) -> Took:
    shutil.rmtree(folder, ignore_errors=True)
    os.sync()  # what the one before has written must not be paid by this one
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    work()
    return Took(time.perf_counter() - wall, sum(os.times()[:4]) - cpu)


def measure(photos: Path, form: str, copies: int, rounds: int) -> dict[str, str | float]:
    with tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "in", Path(name) / "out"
        files = replicate(photos, source, copies)
        images = [file.read_bytes() for file in files]
        make = {"tar": as_tar, "parquet": as_parquet}.get(form)
        source = make(files, Path(name)) if make else source
        works: dict[str, Callable[[], None]] = {
            "bare_decode": lambda: bare_decode(images),
            "pack_full": lambda: run_pack(source, out, "full"),
            "shard_writer": lambda: stock_write(source, out),
            "pack_header": lambda: run_pack(source, out, "header"),
        }
        took: dict[str, list[Took]] = {what: [] for what in works}
        for _ in range(rounds):
            for what, work in works.items():
                took[what].append(seconds(work, out))
    count = len(images)
    result = {
        f"{what}_images_per_second": count / min(each.wall for each in times)
        for what, times in took.items()
    }
    for mine, theirs in (("pack_full", "bare_decode"), ("pack_header", "shard_writer")):
        pairs = list(zip(took[mine], took[theirs], strict=True))
        ratios = [their.wall / my.wall for my, their in pairs]
        result[f"{mine}_of_{theirs}"] = statistics.median(ratios)
        result[f"{mine}_of_{theirs}_best"] = max(ratios)
        result[f"{mine}_of_{theirs}_cpu"] = statistics.median(t.cpu / m.cpu for m, t in pairs)
    return {
        "form": form,
        "images": count,
        "cores": CORES,
        **{k: float(f"{v:.4g}") for k, v in result.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of .jpg")
    parser.add_argument("--form", choices=("folder", "tar", "parquet"), default="folder")
    parser.add_argument("--copies", type=int, default=8, help="how often each is packed")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(measure(given.photos, given.form, given.copies, given.rounds)))


if __name__ == "__main__":
    main()
