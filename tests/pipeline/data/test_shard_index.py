import hashlib
import zlib

import numpy as np
import pytest

from pipeline.data.shard_index import RawSample, ShardIndex
from pipeline.errors import DatasetError, SampleError
from pipeline.packing.shard_writer import Extent, IndexRow, index_of

ROWS = [
    IndexRow("a", "jpg", 0, 1024, Extent(512, 3, 2**32 - 1), width=5, height=6),
    IndexRow("é", "png", 1024, 2**40, Extent(1536, 9, 0)),
]


def test_an_index_reads_back_as_it_was_written() -> None:
    index = index_of(ROWS, {})
    data = index.to_bytes()
    found = ShardIndex.from_bytes(data, hashlib.sha256(data).hexdigest(), "x")
    assert found.keys == ["a", "é"]
    assert found.crc32[0] == 2**32 - 1
    assert found.ends[1] == 2**40
    assert list(found.json_sizes) == [-1, -1]
    assert found.widths.dtype == np.int32


def test_an_index_that_was_changed_is_refused() -> None:
    data = index_of(ROWS, {}).to_bytes()
    with pytest.raises(DatasetError, match="sha256"):
        ShardIndex.from_bytes(data + b"x", hashlib.sha256(data).hexdigest(), "index/0.arrow")


def test_one_flipped_bit_is_noticed() -> None:
    crc32 = zlib.crc32(b"pixels")
    assert RawSample("a", b"pixels", crc32, {}).checked_image() == b"pixels"
    with pytest.raises(SampleError, match="not those that were packed"):
        RawSample("a", b"pixelt", crc32, {}).checked_image()
