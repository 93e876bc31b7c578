"""Arrow tables from bytes: validated in full before a value is touched.

Arrow follows offsets without looking: one wrong bit in a file ends the process, and a hostile file
reads foreign memory. So nothing else here opens Arrow.
"""

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
        batch = pa.ipc.read_record_batch(pa.py_buffer(data), schema)
        batch.validate(full=True)
        for field, column in zip(schema, batch.columns, strict=True):
            if not field.nullable and column.null_count:
                raise ValueError(f"{field.name} holds nothing in some rows")
    except FAULTS as error:
        raise _told(error, url, "a record batch can't be read") from None
    return batch


def _told(error: BaseException, url: str, what: str) -> StorageError:
    said = " ".join(str(error).split())[:200]
    if is_shortage(error):
        return StorageShortageError(f"{one_line(url)}: memory for it ran out ({said}).")
    return StorageError(f"{one_line(url)}: {what} ({said}).")
