"""What a reader fetches, and how often."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import storage
from pipeline.config import IndexConfig, PackConfig
from pipeline.data import Dataset, Loader
from pipeline.data.fetch import SampleReader
from pipeline.data.keys import path_of
from pipeline.data.manifest import Places, ShardRecord
from pipeline.errors import DatasetError
from pipeline.packing.adopt import adopt
from pipeline.packing.pack import pack

COUNT, CHUNK = 40, 4


def number_of(key: str) -> int:
    """Of an image that is named by its number."""
    return int(Path(path_of(key)).stem)


def png(seed: int) -> bytes:
    """A 16-pixel image of noise, about 860 bytes whatever the seed."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def remote(tmp_path: Path) -> Dataset:
    """Forty images in one shard behind a URL that is not local."""
    for seed in range(COUNT):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{seed:02}.png").write_bytes(png(seed))
    pack(PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "packed")))
    url = f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").put(str(tmp_path / "packed"), f"/{tmp_path.name}", recursive=True)
    return Dataset.open(url)


def test_a_chunk_that_was_read_through_makes_room_before_one_that_was_fetched_ahead(
    remote: Dataset,
) -> None:
    index = remote.read_index(0)
    chunk = int(index.ends[CHUNK - 1] - index.starts[0])
    reader = SampleReader(remote, CHUNK, int(2.5 * chunk), ())
    reader.read(0)
    reader.warm(CHUNK)  # the second chunk, which is needed later
    for sample in range(1, CHUNK):
        reader.read(sample)
    reader.warm(2 * CHUNK)  # now one of the three has to go
    assert reader.transfers.requests == 1 + 3  # the index, and chunks
    for sample in range(CHUNK, 3 * CHUNK):
        reader.read(sample)
    assert reader.transfers.requests == 1 + 3  # the index, and chunks


def test_a_chunk_is_fetched_once_however_many_of_its_samples_are_read(remote: Dataset) -> None:
    reader = SampleReader(remote, CHUNK, 2**20, ())
    images = {number_of(raw.key): raw.checked_image() for raw in map(reader.read, range(COUNT))}
    assert images == {seed: png(seed) for seed in range(COUNT)}
    assert reader.transfers.requests == 1 + COUNT // CHUNK


def test_an_index_is_read_once_for_each_chunk_when_not_all_indexes_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a large dataset of small images, of which a batch takes one of each of many shards."""
    (tmp_path / "images").mkdir()
    for seed in range(COUNT):
        (tmp_path / "images" / f"{seed:02}.png").write_bytes(png(seed))
    output = str(tmp_path / "packed")
    pack(PackConfig(source=(str(tmp_path / "images"),), output=output, shard_bytes=40_000))
    found = Dataset.open(output)
    assert len(found.shards) > 3
    read: list[int] = []
    whole = Dataset.read_index

    def noted(self: Dataset, number: int, get: Any) -> Any:
        read.append(number)
        return whole(self, number, get)

    monkeypatch.setattr(Dataset, "read_index", noted)
    monkeypatch.setattr("pipeline.data.memory.INDEX_SAMPLES", 1)
    reader = SampleReader(found, CHUNK, 2**20, ())
    chunks = {(reader.places.find(sample).shard, sample // CHUNK) for sample in range(COUNT)}
    in_turn = sorted(range(COUNT), key=lambda sample: (sample % CHUNK, sample))
    images = {number_of(raw.key): raw.checked_image() for raw in map(reader.read, in_turn)}
    assert images == {seed: png(seed) for seed in range(COUNT)}
    assert len(read) <= len(chunks) < COUNT


def test_an_image_by_itself_costs_its_own_bytes_and_no_more(remote: Dataset) -> None:
    reader = SampleReader(remote, CHUNK, 2**20, ())
    raw = reader.read(7, alone=True)
    assert raw.checked_image() == png(number_of(raw.key))
    index = storage.stat(storage.join(remote.url, remote.shards[0].index_path)).size
    assert (reader.transfers.requests, reader.transfers.bytes) == (2, index + len(raw.image))


def test_indexes_that_are_read_again_count_as_bytes_fetched(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.data.memory.INDEX_SAMPLES", 0)
    two = replace(remote, manifest=replace(remote.manifest, shards=2 * remote.shards))
    reader = SampleReader(two, CHUNK, 2**20, ())
    index = storage.stat(storage.join(remote.url, remote.shards[0].index_path)).size
    images = 0
    for sample in (0, COUNT, 1 + CHUNK, COUNT + 1 + CHUNK):
        images += len(reader.read(sample, alone=True).image)
    assert (reader.transfers.requests, reader.transfers.bytes) == (8, 4 * index + images)


@pytest.mark.parametrize("beside", [b'{"label": 3', b"[1, 2]", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_annotation_costs_its_sample_and_no_other(tmp_path: Path, beside: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for seed in range(8):
            good = json.dumps({"label": seed}).encode()
            for name, data in (("png", png(seed)), ("json", beside if seed == 5 else good)):
                member = tarfile.TarInfo(f"{seed}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source, output = (str(tmp_path / "a.tar"),), str(tmp_path / "adopted")
    adopt(IndexConfig(source=source, output=output, verify="none"))  # else it is a reject
    dataset = Dataset.open(str(tmp_path / "adopted"), None, [str(tmp_path)])
    loader = Loader(dataset, global_batch_size=8, image_size=16, threads=2, columns=("label",))
    (batch,) = list(loader)
    loader.close()
    assert batch.errors == {"5": "annotation"}
    labels = dict(zip(batch.keys, batch.columns["label"], strict=True))
    assert labels == {str(n): n for n in range(8) if n != 5} | {"5": None}


def test_the_loader_needs_no_ray() -> None:
    code = "import sys, pipeline.data; assert not {'ray', 'mlflow'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_fetch_that_failed_keeps_nobody_waiting_and_is_tried_again(
    remote: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[int] = []
    read = storage.read

    def faltering(url: str, start: int = 0, end: int | None = None) -> bytes:
        """The first fetch of samples ends in an error that storage doesn't explain."""
        if end is not None:  # not the index
            fetches.append(start)
            if len(fetches) == 1:
                raise MemoryError("no room")
        return read(url, start, end)

    monkeypatch.setattr(storage, "read", faltering)
    reader = SampleReader(remote, CHUNK, 2**20, ())
    with pytest.raises(MemoryError):
        reader.read(0)
    assert number_of(reader.read(0).key) in range(COUNT)
    assert len(fetches) == 2


@given(st.sets(st.integers(0, 11), max_size=11), st.sets(st.integers(0, 4), max_size=4))
def test_live_samples_are_those_that_were_not_removed_in_order(first: Any, second: Any) -> None:
    def shard(number: int, samples: int, removed: set[int]) -> ShardRecord:
        return ShardRecord(f"{number}.tar", 1, "a", samples, "b", "c", tuple(removed))

    shards = (shard(0, 12, first), shard(1, 5, second))
    found = Places(shards)
    expected = [(0, p) for p in range(12) if p not in first]
    expected += [(1, p) for p in range(5) if p not in second]
    places = [found.find(sample) for sample in range(len(expected))]
    assert [(place.shard, place.position) for place in places] == expected


def test_after_close_nothing_more_is_read_and_nobody_waits(remote: Dataset) -> None:
    reader = SampleReader(remote, CHUNK, 2**20, ())
    reader.read(0)
    reader.close()
    with pytest.raises(DatasetError, match="the loader was closed"):
        reader.read(CHUNK)
    assert reader.transfers.requests == 2  # the index and one chunk
