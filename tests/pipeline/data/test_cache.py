import errno
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.config import LoaderConfig, PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader
from pipeline.data.cache import ChunkCache, DecodedCache
from pipeline.data.loader import PREFETCH_BATCHES
from pipeline.errors import StorageError
from pipeline.packing.pack import pack
from tests.servers import rgw
from tests.support.digit_models import pack_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_digits(tmp_path_factory.mktemp("digits"))


def index_bytes(dataset: Dataset) -> int:
    urls = [storage.join(dataset.url, shard.index_path) for shard in dataset.shards]
    return sum(storage.stat(url).size for url in urls)


def decoded_in(folder: Path) -> LoaderConfig:
    return LoaderConfig(cache_folder=str(folder), cache_decoded=True)


def batches(dataset: Dataset, epochs: int = 2, **knobs: Any) -> tuple[list[torch.Tensor], Loader]:
    loader = Loader(
        dataset, global_batch_size=16, image_size=12, channels=1, flip=True, threads=2, **knobs
    )
    found = [batch.images.clone() for _ in range(epochs) for batch in loader]
    loader.close()
    return found, loader


def test_decoded_images_come_back_bit_by_bit_and_nothing_is_read_twice(
    data: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(str(data))
    plain, _ = batches(dataset)
    cached, first = batches(dataset, settings=decoded_in(tmp_path))
    again, second = batches(dataset, settings=decoded_in(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    # The second epoch's first batches are begun before the first one's last images are kept.
    ahead = PREFETCH_BATCHES * 16
    assert first.stats.cache_hits >= len(dataset) - ahead > 0
    assert second.stats.bytes_fetched == index_bytes(dataset)


def test_a_damaged_cached_image_is_decoded_again(data: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(str(data))
    plain, _ = batches(dataset)
    batches(dataset, settings=decoded_in(tmp_path))
    (images,) = tmp_path.glob("decoded/*/images.u8")
    content = bytearray(images.read_bytes())
    content[5] ^= 1
    images.write_bytes(content)
    again, loader = batches(dataset, settings=decoded_in(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert loader.stats.bytes_fetched > index_bytes(dataset)


def test_another_preprocessing_has_another_cache(data: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(str(data))
    for channels in (1, 3):
        DecodedCache(tmp_path, dataset, PreprocessConfig(image_size=8, channels=channels))
    assert len(list(tmp_path.glob("decoded/*"))) == 2


def test_chunks_from_object_storage_are_fetched_once_and_stay_within_their_limit(
    data: Path, tmp_path: Path, s3_server: rgw.S3Server
) -> None:
    bucket = s3_server.bucket()
    pack(PackConfig(source=(str(data.parent / "images"),), output=f"{bucket}/d", workers=1))
    dataset = Dataset.open(f"{bucket}/d")
    plain, loader = batches(dataset)
    first, _ = batches(dataset, settings=LoaderConfig(cache_folder=str(tmp_path)))
    second, cached = batches(dataset, settings=LoaderConfig(cache_folder=str(tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(plain, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, second, strict=True))
    assert cached.stats.bytes_fetched == index_bytes(dataset)
    assert cached.stats.cache_misses == 0
    assert loader.stats.bytes_fetched > index_bytes(dataset)


def test_the_oldest_chunks_go_first_when_there_is_no_more_room(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, limit_bytes=1000)
    for start in range(0, 3000, 100):
        assert len(cache.read("shard", start, start + 100, lambda: bytes(100))) == 100
    held = sum(path.stat().st_size for path in tmp_path.glob("chunks/*/*"))
    assert held <= 1000
    cache.read("shard", 2900, 3000, lambda: pytest.fail("the newest chunk is there"))
    assert ChunkCache(tmp_path, 1000).read("shard", 0, 100, lambda: b"again" * 20) == b"again" * 20


def test_a_half_written_chunk_is_fetched_again(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, 1000)
    cache.read("shard", 0, 10, lambda: b"0123456789")
    (path,) = tmp_path.glob("chunks/*/*")
    path.write_bytes(b"0123")
    assert cache.read("shard", 0, 10, lambda: b"0123456789") == b"0123456789"
    assert np.frombuffer(path.read_bytes(), np.uint8).size == 10


SHARED = """
import random, sys
from pathlib import Path
from pipeline.data.cache import ChunkCache

rng = random.Random(int(sys.argv[2]))
for _ in range(3):  # each opens the folder anew, while the others write and drop
    cache = ChunkCache(Path(sys.argv[1]), 20_000)
    for _ in range(400):
        start = 1000 * rng.randrange(60)
        data = start.to_bytes(4, "big") * 250
        assert cache.read("a" * 64, start, start + 1000, lambda: data) == data
print(cache.hits)
"""


def test_three_processes_share_a_folder_with_too_little_room(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARED, str(tmp_path)]
    started = [
        subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(3)
    ]
    hits = [int(process.communicate()[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert min(hits) > 0
    ChunkCache(tmp_path, 20_000).read("b" * 64, 0, 1000, lambda: bytes(1000))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 24_000


def test_a_cache_that_can_not_be_written_costs_its_use_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ChunkCache(tmp_path, 20_000)
    (tmp_path / "chunks").rmdir()
    (tmp_path / "chunks").write_text("in the way")
    for _ in range(2):
        assert cache.read("a" * 64, 0, 4, lambda: b"abcd") == b"abcd"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path: Path) -> None:
    ChunkCache(tmp_path, 20_000)
    for name, age in (("old", 4000), ("new", 10)):
        path = tmp_path / "chunks" / f".partial-{name}"
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    ChunkCache(tmp_path, 20_000)
    assert [path.name for path in (tmp_path / "chunks").iterdir()] == [".partial-new"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_disk_costs_the_decoded_images_and_not_the_process(
    data: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(str(data))
    code = (
        "import sys\n"
        "from pipeline.config import LoaderConfig\n"
        "from pipeline.data import Dataset, Loader\n"
        "kept = LoaderConfig(cache_folder=sys.argv[2], cache_decoded=True)\n"
        "loader = Loader(Dataset.open(sys.argv[1]), global_batch_size=16, image_size=64,\n"
        "                settings=kept)\n"
        "print(sum(int(batch.valid.sum()) for batch in loader))\n"
        "loader.close()\n"
    )
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(data), str(tmp_path)],
            check=False, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(dataset))), done.stderr
    assert "nothing more is kept" in done.stderr


def test_more_decoded_images_than_a_file_may_hold_are_refused_with_what_to_do(
    data: Path, tmp_path: Path
) -> None:
    dataset = Dataset.open(str(data))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(dataset) * 64 * 64 - 1, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"images\.u8.*TB.*File too large.*XFS"):
            DecodedCache(tmp_path, dataset, PreprocessConfig(image_size=64, channels=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"--loader\.cache-folder"):
        ChunkCache(tmp_path / "file", 20_000)


def test_a_full_disk_is_told_once_and_what_was_not_kept_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ChunkCache(tmp_path, 20_000)

    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for start in (0, 1000):
        assert cache.read("a" * 64, start, start + 1000, lambda: bytes(1000)) == bytes(1000)
    monkeypatch.undo()
    assert ["No space left" in record.message for record in caplog.records] == [True]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert cache._held_bytes == 0


def test_chunks_behind_a_link_are_nobodys_to_remove_and_a_fifo_is_not_waited_for(
    tmp_path: Path,
) -> None:
    mine = tmp_path / "beyond/mine"
    mine.parent.mkdir()
    mine.write_bytes(bytes(5000))
    cache = ChunkCache(tmp_path, 1000)
    (tmp_path / "chunks/evil").symlink_to(mine.parent)
    (tmp_path / "chunks" / ("a" * 64)).mkdir()
    os.mkfifo(tmp_path / "chunks" / ("a" * 64) / "0-10")
    assert cache.read("a" * 64, 0, 10, lambda: b"0123456789") == b"0123456789"
    for start in range(0, 3000, 500):
        cache.read("b" * 64, start, start + 500, lambda: bytes(500))
    assert mine.read_bytes() == bytes(5000)


@pytest.mark.parametrize("name", ["images.u8", "sums.u64", "", "decoded"])
def test_decoded_images_are_not_written_through_a_link(
    data: Path, tmp_path: Path, name: str
) -> None:
    dataset, kept = Dataset.open(str(data)), tmp_path / "cache"
    beyond = tmp_path / "beyond"
    read = PreprocessConfig(image_size=8, channels=1)
    DecodedCache(kept, dataset, read)
    (place,) = kept.glob("decoded/*")
    evil = kept / "decoded" if name == "decoded" else place / name
    evil.rename(beyond)
    evil.symlink_to(beyond)
    with pytest.raises(StorageError, match="is a link, a FIFO or a device in place of"):
        DecodedCache(kept, dataset, read)
    evil.unlink()
    if name.endswith("8"):
        os.mkfifo(evil)
        with pytest.raises(StorageError, match="is a link, a FIFO or a device in place of"):
            DecodedCache(kept, dataset, read)
