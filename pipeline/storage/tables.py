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
    """Where the record batches of a file begin, as its footer says."""
    length = struct.unpack_from("<i", data, len(data) - 10)[0]
    footer = _Flat(memoryview(data)[len(data) - 10 - length :])
    yield from (at for at, _ in footer.structs(3, 24))


UNPACKED_BYTES = 2**31
"""Of one record batch that is compressed: as much as Arrow puts into one column of bytes."""


def refuse_bombs(file: Any, size: int, only: int | None = None) -> None:
    """Raises `ValueError` for compressed batches that would unpack to more than `UNPACKED_BYTES`.

    Of somebody else's Arrow file or stream of `size` bytes: what each buffer unpacks to stands
    before it, and Arrow takes that much memory before it looks further. `only`: one batch, and
    the dictionaries that it may need.
    """
    try:
        for at in _places(file, size, only):
            unpacked = _unpacked(file, at)
            if unpacked > UNPACKED_BYTES:
                raise ValueError(
                    f"a record batch unpacks to {unpacked / 2**30:,.1f} GiB, over "
                    f"{UNPACKED_BYTES / 2**30:,.0f}: write it in smaller ones, or uncompressed"
                )
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"its metadata makes no sense: {error}") from None


def _places(file: Any, size: int, only: int | None = None) -> Iterator[int]:
    """Where batches and dictionaries lie, by a file's footer or one after the other in a stream."""
    file.seek(0)
    if file.read(6) == b"ARROW1":
        file.seek(max(0, size - 10))
        # No more than there is: Arrow takes the memory before it reads.
        length = min(max(0, struct.unpack_from("<i", file.read(4))[0]), size)
        file.seek(max(0, size - 10 - length))
        footer = _Flat(memoryview(file.read(length)))
        for field in (2, 3):
            yield from (at for at, _ in footer.structs(field, 24, only if field == 3 else None))
        return
    at = batches = 0
    while at + 8 <= size and (only is None or batches <= only):
        begin, message = _message(file, at)
        if message is None:
            return
        batches += message.number(1) == _BATCH
        yield at
        at = begin + max(0, message.long(3))


def _message(file: Any, at: int) -> tuple[int, "_Flat | None"]:
    """Where the body of a message at byte `at` begins, and what the message says; None at the end.

    Before its length stand four bytes of ones, but in files of old.
    """
    file.seek(max(0, at))
    mark, length = struct.unpack("<ii", file.read(8))
    begin = at + 8
    if mark != -1:
        length, begin = mark, at + 4
    if length <= 0:
        return begin, None
    file.seek(max(0, begin))
    return begin + length, _Flat(memoryview(file.read(min(length, file.size()))))


def _unpacked(file: Any, at: int) -> int:
    """Bytes that the compressed buffers of a batch at byte `at` claim to hold; 0 if it has none."""
    begin, message = _message(file, at)
    if message is None or message.number(1) not in _BATCHES:
        return 0
    batch = message.table(2)
    if message.number(1) == _DICTIONARY:
        batch = batch.table(1)
    if not batch.has(3):
        return 0
    total = 0
    for offset, length in batch.structs(2, 16):
        if length >= 8:
            file.seek(max(0, begin + offset))
            total += max(0, *struct.unpack("<q", file.read(8)))
    return total


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

    def long(self, field: int) -> int:
        place = self._place(field)
        return int(struct.unpack_from("<q", self._data, place)[0]) if place else 0

    def structs(self, field: int, size: int, only: int | None = None) -> Iterator[tuple[int, int]]:
        """The first sixteen bytes of each struct of a vector, or of one, as two numbers."""
        place = self._place(field)
        if not place:
            return
        vector = place + struct.unpack_from("<I", self._data, place)[0]
        count = struct.unpack_from("<I", self._data, vector)[0]
        for number in range(count) if only is None else range(only, min(only + 1, count)):
            yield struct.unpack_from("<qq", self._data, vector + 4 + number * size)


_DICTIONARY, _BATCH = 2, 3
_BATCHES = (_DICTIONARY, _BATCH)
"""Arrow's numbers for messages that hold a dictionary's batch, or a table's."""


def _told(error: BaseException, url: str, what: str) -> StorageError:
    said = " ".join(str(error).split())[:200]
    if is_shortage(error):
        return StorageShortageError(f"{one_line(url)}: memory for it ran out ({said}).")
    return StorageError(f"{one_line(url)}: {what} ({said}).")
