"""The rows of one group of a Parquet or Arrow table, read forward and given once each.

A group may hold all rows of a table, and more bytes than memory, or than the 2 GiB of one Arrow
array of binaries: it is never looked at as a whole.
"""

import threading
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline import storage
from pipeline.sources.table_rows import Row, arrow_batches, is_parquet, open_parquet

_BATCH_BYTES, _MOST_ROWS = 16 * 2**20, 256
"""Of a group in memory at a time, by the mean size of its rows: a read each."""
_BEHIND, _BEHIND_BYTES = 2048, 2**26
"""Rows before the furthest that was asked for are kept: threads do not ask quite in order."""
_BUFFER_BYTES = 2**23
"""Of one ranged read of a table that is not local; without it a whole column is read at once."""


class GroupRows:
    """Rows as dictionaries, without the columns `dropped`; whoever asks in order reads once.

    A table that has another tag than `etag` by now is an `ObjectChangedError`: another row may have
    this number.
    """

    def __init__(self, url: str, etag: str, group: int, dropped: Sequence[str]) -> None:
        self._url, self._etag, self._group, self._dropped = url, etag, group, dropped
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._batches = _batches(self._url, self._group, self._dropped)
        self._next = 0
        self._ahead: dict[int, pa.RecordBatch] = {}

    def take(self, row: int) -> Row | None:
        """A row by its number in the group; None where there is none."""
        with self._lock:
            if row < self._next and row not in self._ahead:
                self._begin()
            while row >= self._next:
                batch = next(self._batches, None)
                storage.refuse_changed(self._url, self._etag)
                if batch is None:
                    return None
                mean = batch.nbytes // max(batch.num_rows, 1)
                kept = row - min(_BEHIND, max(1, _BEHIND_BYTES // max(mean, 1)))
                self._forget(kept)
                for at in range(batch.num_rows):
                    if self._next + at > kept:
                        self._ahead[self._next + at] = batch.slice(at, 1)
                self._next += batch.num_rows
            found = self._ahead.pop(row)
        values: Row = found.to_pylist()[0]
        return values

    def _forget(self, row: int) -> None:
        for old in [number for number in self._ahead if number <= row]:
            del self._ahead[old]


def _batches(url: str, group: int, dropped: Sequence[str]) -> Iterator[pa.RecordBatch]:
    if not is_parquet(url):
        for _, found in arrow_batches(url, group):
            yield found.select([name for name in found.schema.names if name not in dropped])
        return
    local = storage.local_path(url) is not None
    with open_parquet(url, 0 if local else _BUFFER_BYTES, group) as file:
        if group >= file.metadata.num_row_groups:
            return
        about = file.metadata.row_group(group)
        mean = about.total_byte_size // max(about.num_rows, 1)
        yield from file.iter_batches(
            batch_size=max(1, min(_MOST_ROWS, _BATCH_BYTES // max(mean, 1))),
            row_groups=[group],
            columns=[name for name in file.schema_arrow.names if name not in dropped],
        )
