"""What a batch of somebody's Arrow table becomes when its rows are read one by one.

Some layouts let many rows share one value (dictionaries, views, runs), and some have rows without a
byte (null): a few kilobytes may stand for terabytes.
"""

from typing import Any

import numpy as np
import pyarrow.types as kinds

from pipeline.storage.tables import UNPACKED_BYTES

_ROWS_OF_A_BYTE = 8
"""A column of booleans has as many; some more rows are let pass."""
_FEW_ROWS = 2**16
_SHARED = 4
"""So much more than its bytes a batch may be, however large it is: paths and labels repeat."""


def check_batch(batch: Any) -> None:
    """Raises `ValueError` for a batch of more rows than it has bytes for, or of too large ones."""
    if batch.num_rows > _FEW_ROWS + _ROWS_OF_A_BYTE * batch.nbytes:
        raise ValueError(
            f"a record batch says that it has {batch.num_rows:,} rows, in {batch.nbytes:,} bytes: "
            "leave columns without values out"
        )
    size = sum(_expanded(column) for column in batch.columns)
    if size > max(UNPACKED_BYTES, _SHARED * batch.nbytes):
        raise ValueError(
            f"a record batch of {batch.nbytes:,} bytes is {size / 2**30:,.1f} GiB when its rows "
            f"are written out, over {UNPACKED_BYTES / 2**30:,.0f}: write it in smaller ones"
        )


def _expanded(array: Any) -> int:
    """Bytes of all rows, each with a value of its own."""
    kind = array.type
    if kinds.is_dictionary(kind):
        chosen = np.asarray(array.indices.drop_null()).astype(np.int64)
        return _of_times(array.dictionary, np.bincount(chosen, minlength=len(array.dictionary)))
    if kinds.is_run_end_encoded(kind):
        # Of all runs, also where the column begins or ends within them: that is more.
        return _of_times(array.values, np.diff(np.asarray(array.run_ends), prepend=0))
    if kinds.is_string_view(kind) or kinds.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1] or b"", np.int32)[::4]
        mine = views[array.offset : array.offset + len(array)]
        return int(np.maximum(mine, 0).sum(dtype=np.int64))
    if kinds.is_list_view(kind) or kinds.is_large_list_view(kind):
        inside = array.values
        mean = _expanded(inside) / max(1, len(inside))
        return int(mean * float(np.asarray(array.sizes).sum(dtype=np.float64)))
    if kinds.is_struct(kind):
        return sum(_expanded(array.field(number)) for number in range(kind.num_fields))
    if kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        return int(_expanded(array.values))
    return int(array.nbytes)


def _of_times(values: Any, times: Any) -> int:
    """Of values that stand in so many rows each."""
    if not len(values):
        return 0
    if any(check(values.type) for check in (kinds.is_string, kinds.is_binary)):
        offsets = np.frombuffer(values.buffers()[1], np.int32)
    elif any(check(values.type) for check in (kinds.is_large_string, kinds.is_large_binary)):
        offsets = np.frombuffer(values.buffers()[1], np.int64)
    else:
        return int(_expanded(values) / len(values) * float(times.sum(dtype=np.float64)))
    mine = offsets[values.offset : values.offset + len(values) + 1]
    return int((np.diff(mine).astype(np.float64) * times).sum())
