"""Arrow tables from bytes: validated in full before a value is touched.

Arrow follows offsets without looking: one wrong bit in a file ends the process, and a hostile file
reads foreign memory. So nothing else here opens Arrow.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.errors import StorageError, StorageShortageError, is_shortage
from pipeline.masking import one_line

FAULTS = (pa.ArrowException, KeyError, OSError, SystemError, TypeError, ValueError)
"""What pyarrow is seen to raise on damaged bytes."""


def parse_table(data: bytes, schema: pa.Schema | None, url: str) -> pa.Table:
    """The table in an Arrow IPC file, all of it validated; with `schema`, exactly of that one.

    With a schema no value may be null. Raises `StorageError` naming `url`.
    """
    try:
        _refuse_compressed(data, _blocks(data))
        with pa.ipc.open_file(pa.BufferReader(data)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        if schema is not None and not table.schema.equals(schema):
            raise ValueError(f"its columns are {', '.join(table.column_names)}")
        if schema is not None and any(column.null_count for column in table.columns):
            raise ValueError("a value is missing")
    except FAULTS as error:
        raise _told(error, url, "is no whole table") from None
    return table


def parse_batch(data: Any, schema: pa.Schema, url: str) -> pa.RecordBatch:
    """One record batch of a file, all of it validated; a field that can't be null has no null."""
    try:
        _refuse_compressed(data, (0,))
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
        batch.validate(full=True)
        for field, column in zip(schema, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                raise ValueError(f"{field.name} holds nothing in some rows")
    except FAULTS as error:
        raise _told(error, url, "a record batch can't be read") from None
    return batch


def _refuse_compressed(data: Any, blocks: Iterable[int]) -> None:
    """Raises `ValueError` for compressed buffers: 24 GiB of zeros fit into a megabyte.

    We write none. Arrow tells of them in the metadata of each batch, and unpacks what they claim.
    """
    try:
        for at in blocks:
            message = _Flat(memoryview(data)[at + 8 :])  # behind a mark and the length
            if message.number(1) in _BATCHES and message.table(2).has(3):
                raise ValueError("its buffers are compressed")
    except (struct.error, IndexError) as error:
        raise ValueError(f"its metadata makes no sense: {error}") from None


def _blocks(data: bytes) -> Iterator[int]:
    """Where the messages of a file begin, as its footer says."""
    length = struct.unpack_from("<i", data, len(data) - 10)[0]
    footer = _Flat(memoryview(data)[len(data) - 10 - length :])
    yield from footer.structs(3, 24)


class _Flat:
    """A table of flatbuffers, as far as it takes to look at one field."""

    def __init__(self, data: memoryview, at: int | None = None) -> None:
        self._data = data
        self._at = struct.unpack_from("<I", data)[0] if at is None else at

    def _place(self, field: int) -> int:
        """Where a field's value stands; 0: it is not there."""
        table = self._at - struct.unpack_from("<i", self._data, self._at)[0]
        size = struct.unpack_from("<H", self._data, table)[0]
        if 4 + 2 * field >= size:
            return 0
        offset = int(struct.unpack_from("<H", self._data, table + 4 + 2 * field)[0])
        return offset and self._at + offset

    def has(self, field: int) -> bool:
        return self._place(field) != 0

    def number(self, field: int) -> int:
        place = self._place(field)
        return self._data[place] if place else 0

    def table(self, field: int) -> "_Flat":
        place = self._place(field)
        return _Flat(self._data, place + struct.unpack_from("<I", self._data, place)[0])

    def structs(self, field: int, size: int) -> Iterator[int]:
        """The first eight bytes of each struct of a vector, as a number."""
        place = self._place(field)
        if not place:
            return
        vector = place + struct.unpack_from("<I", self._data, place)[0]
        for number in range(struct.unpack_from("<I", self._data, vector)[0]):
            yield struct.unpack_from("<q", self._data, vector + 4 + number * size)[0]


_BATCHES = (2, 3)
"""Arrow's numbers for messages that hold a dictionary's batch, or a table's."""


def _told(error: BaseException, url: str, what: str) -> StorageError:
    said = " ".join(str(error).split())[:200]
    if is_shortage(error):
        return StorageShortageError(f"{one_line(url)}: memory for it ran out ({said}).")
    return StorageError(f"{one_line(url)}: {what} ({said}).")
