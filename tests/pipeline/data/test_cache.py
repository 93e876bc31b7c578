from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import PackConfig, PreprocessConfig
from pipeline.data import Dataset, Loader
from pipeline.data.cache import ChunkCache, DecodedCache
from pipeline.data.pack import pack
from tests.pipeline.training.digits import write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits")) / "data"


def batches(dataset: Dataset, epochs: int = 2, **knobs) -> tuple[list[torch.Tensor], Loader]:
    loader = Loader(
        dataset, global_batch_size=16, image_size=12, channels=1, flip=True, threads=2, **knobs
    )
    found = [batch.images.clone() for _ in range(epochs) for batch in loader]
    loader.close()
    return found, loader


def test_decoded_images_come_back_bit_by_bit_and_nothing_is_read_twice(data, tmp_path):
    dataset = Dataset.open(str(data))
    plain, _ = batches(dataset)
    cached, first = batches(dataset, cache_folder=str(tmp_path), cache_decoded=True)
    again, second = batches(dataset, cache_folder=str(tmp_path), cache_decoded=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, cached, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert first.stats.cache_hits >= len(dataset)
    assert second.stats.bytes_fetched == 0


def test_a_damaged_cached_image_is_decoded_again(data, tmp_path):
    dataset = Dataset.open(str(data))
    plain, _ = batches(dataset)
    batches(dataset, cache_folder=str(tmp_path), cache_decoded=True)
    (images,) = tmp_path.glob("decoded/*/images.u8")
    content = bytearray(images.read_bytes())
    content[5] ^= 1
    images.write_bytes(content)
    again, loader = batches(dataset, cache_folder=str(tmp_path), cache_decoded=True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert loader.stats.bytes_fetched > 0


def test_another_preprocessing_has_another_cache(data, tmp_path):
    dataset = Dataset.open(str(data))
    for channels in (1, 3):
        DecodedCache(tmp_path, dataset, PreprocessConfig(image_size=8, channels=channels))
    assert len(list(tmp_path.glob("decoded/*"))) == 2


def test_chunks_from_object_storage_are_fetched_once_and_stay_within_their_limit(
    data, tmp_path, s3_server
):
    bucket = s3_server.bucket()
    pack(PackConfig(source=(str(data.parent / "images"),), output=f"{bucket}/d", workers=1))
    dataset = Dataset.open(f"{bucket}/d")
    plain, loader = batches(dataset)
    first, _ = batches(dataset, cache_folder=str(tmp_path))
    second, cached = batches(dataset, cache_folder=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain, second, strict=True))
    assert cached.stats.bytes_fetched == 0
    assert cached.stats.cache_misses == 0
    assert loader.stats.bytes_fetched > 0


def test_the_oldest_chunks_go_first_when_there_is_no_more_room(tmp_path):
    cache = ChunkCache(tmp_path, limit_bytes=1000)
    for start in range(0, 3000, 100):
        assert len(cache.read("shard", start, start + 100, lambda: bytes(100))) == 100
    held = sum(path.stat().st_size for path in tmp_path.glob("chunks/*/*"))
    assert held <= 1000
    cache.read("shard", 2900, 3000, lambda: pytest.fail("the newest chunk is there"))
    assert ChunkCache(tmp_path, 1000).read("shard", 0, 100, lambda: b"again" * 20) == b"again" * 20


def test_a_half_written_chunk_is_fetched_again(tmp_path):
    cache = ChunkCache(tmp_path, 1000)
    cache.read("shard", 0, 10, lambda: b"0123456789")
    (path,) = tmp_path.glob("chunks/*/*")
    path.write_bytes(b"0123")
    assert cache.read("shard", 0, 10, lambda: b"0123456789") == b"0123456789"
    assert np.frombuffer(path.read_bytes(), np.uint8).size == 10
