"""A table of ours has no compressed buffers: one that has is a bomb, or somebody else's."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import StorageError
from pipeline.storage.tables import parse_batch, parse_table

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string())])


def table(compression: str | None, batches: int = 2) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, SCHEMA, options=options) as writer:
        for _ in range(batches):
            rows = [pa.array(np.zeros(1000, np.int64)), pa.array(["x" * 9] * 1000)]
            writer.write_batch(pa.record_batch(rows, schema=SCHEMA))
    return bytes(sink.getvalue())


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_buffers_are_refused_before_they_are_unpacked(compression: str) -> None:
    with pytest.raises(StorageError, match="its buffers are compressed"):
        parse_table(table(compression), SCHEMA, "x")
    options = pa.ipc.IpcWriteOptions(compression=compression)
    batch = pa.record_batch([pa.array([1] * 999), pa.array(["x" * 9] * 999)], schema=SCHEMA)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as writer:
        writer.write_batch(batch)  # behind the schema
        begin = sink.tell()
        writer.write_batch(batch)
        end = sink.tell()
    with pytest.raises(StorageError, match="its buffers are compressed"):
        parse_batch(bytes(sink.getvalue())[begin:end], SCHEMA, "x")


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_what_we_write_is_read(batches: int) -> None:
    assert parse_table(table(None, batches), SCHEMA, "x").num_rows == 1000 * batches


@pytest.mark.parametrize("data", [b"", b"x", b"ARROW1\0\0" + bytes(200), table(None)[:-20]])
def test_what_is_no_table_is_told(data: bytes) -> None:
    with pytest.raises(StorageError, match="is no whole table"):
        parse_table(data, SCHEMA, "x")
