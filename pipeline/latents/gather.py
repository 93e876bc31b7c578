"""Rows from here and there in a store, as arrays: what training reads, all of a batch at once."""

import functools
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.column_types import vector_size
from pipeline.int8 import restored
from pipeline.latents.latent_file import SCALE, Column, column_values, stored_values
from pipeline.latents.part_rows import PartRows
from pipeline.latents.positions import Ids, Kept
from pipeline.latents.stored_shard import StoredPart

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]

_READ_THREADS = 16
"""Ranged reads, which wait for the network."""
_MOST_RECORDS = 65_536
"""Record batches of mapped memory that are remembered, about 1 KB each."""


@dataclass(frozen=True)
class Found:
    """Where each of n samples lies; one that `is_lost` has no row, `rank` tells which it is."""

    part: Ids
    number: Ids
    row: Ids
    rank: Ids
    is_lost: Bools

    def some(self, slots: Ids) -> "Found":
        """Those of some samples, by their places in this."""
        return Found(
            self.part[slots], self.number[slots], self.row[slots], self.rank[slots],
            self.is_lost[slots],
        )  # fmt: skip


class Places:
    """Sample numbers to places, by arithmetic: number i is the i-th of all that are kept."""

    def __init__(self, parts: Sequence[StoredPart], kept: Sequence[Kept], batch_size: int) -> None:
        self._kept, self._batch_size = kept, batch_size
        self.first = np.concatenate([[0], np.cumsum([len(each) for each in kept])]).astype(np.int64)
        self._lost = [
            np.asarray(part.part.held.rank([f.position for f in part.part.failed]), np.int64)
            for part in parts
        ]
        self._odd = np.array([len(each.gone) > 0 for each in kept], dtype=np.bool_)
        self._lossy = np.array([len(lost) > 0 for lost in self._lost], dtype=np.bool_)

    def __len__(self) -> int:
        return int(self.first[-1])

    def find(self, numbers: Ids) -> Found:
        """The places of these numbers, each from 0 to len(self) - 1."""
        part = np.searchsorted(self.first, numbers, side="right") - 1
        rank = numbers - self.first[part]
        for each in np.unique(part[self._odd[part]]).tolist():
            mine = part == each
            rank[mine] = self._kept[each].ranks(rank[mine])
        number, row = np.divmod(rank, self._batch_size)
        is_lost = np.zeros(len(rank), dtype=np.bool_)
        for each in np.unique(part[self._lossy[part]]).tolist():
            mine, lost = part == each, self._lost[each]
            before = np.searchsorted(lost, rank[mine])
            row[mine] -= before - np.searchsorted(lost, number[mine] * self._batch_size)
            is_lost[mine] = lost[np.minimum(before, len(lost) - 1)] == rank[mine]
        return Found(part, number, row, rank, is_lost)


class _Record:
    """A record batch that was read: where its rows' bytes are, and its keys and columns."""

    def __init__(
        self, rows: pa.RecordBatch, names: Sequence[str], kinds: dict[str, str],
        mapped: pa.Buffer | None,
    ) -> None:  # fmt: skip
        self._rows, self._kinds = rows, kinds
        keys = rows.column("key").buffers()
        self._offsets = memoryview(keys[1]).cast("i") if len(rows) else None
        self._text = memoryview(keys[2]) if len(rows) else None
        self.base = {}
        if mapped is not None:
            for name in names:
                values = rows.column(name).values.buffers()[1]
                self.base[name] = values.address - mapped.address

    def key(self, row: int) -> str:
        """A row's key, without a look at the others."""
        assert self._offsets is not None, "an empty record batch has no row to ask for"
        assert self._text is not None, "nor its keys"
        return str(self._text[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    @functools.cached_property
    def arrays(self) -> "dict[str, pa.Array | Array]":
        """Each column's Arrow array, of vectors as numpy has them."""
        columns = {name: self._rows.column(name) for name in self._kinds}
        return {
            name: column if vector_size(kind) is None else column_values(column, kind)
            for (name, column), kind in zip(columns.items(), self._kinds.values(), strict=True)
        }

    def numbers(self, name: str, dtype: np.dtype[Any]) -> Array:
        """A tensor's numbers as they are stored."""
        return stored_values(self._rows, name, dtype)

    def scales(self, name: str, channels: int) -> Array:
        """What a tensor's eight bits stand for: float32 [rows, 2, Z]."""
        found = stored_values(self._rows, name + SCALE, np.dtype(np.float32))
        return found.reshape(-1, 2, channels)


class Gather:
    """Reads `tensors` of rows of these parts, from one thread.

    Mapped memory is read in place, a record batch's checksum compared when it is first touched.
    Elsewhere record batches are fetched by threads, and kept within `memory_bytes`.
    """

    def __init__(
        self, parts: Sequence[PartRows], tensors: Sequence[str], memory_bytes: int
    ) -> None:
        self._parts, self._tensors, self._memory_bytes = parts, tuple(tensors), memory_bytes
        self._local: OrderedDict[tuple[int, int], _Record] = OrderedDict()
        self._fetched: OrderedDict[tuple[int, int], Future[_Record]] = OrderedDict()
        self._windows: dict[tuple[int, int], Array] = {}
        self._held_bytes = 0
        self._pool: ThreadPoolExecutor | None = None

    def close(self) -> None:
        """Ends the threads, and forgets what they fetched."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._fetched.clear()
        self._held_bytes, self._pool = 0, None

    def begin(self, found: Found) -> None:
        """Begins to fetch what these rows need, so that nobody has to wait for it later."""
        for part, number in self._wanted(found):
            if self._parts[part].mapped is None:
                self._fetch(part, number)

    def records(self, found: Found) -> list[_Record | None]:
        """The record batch of each sample, None for one that is lost."""
        read = {at: self._local.get(at) or self._record(*at) for at in self._wanted(found)}
        pairs = zip(found.part.tolist(), found.number.tolist(), strict=True)
        return [
            None if lost else read[at]
            for at, lost in zip(pairs, found.is_lost.tolist(), strict=True)
        ]

    def take(
        self,
        found: Found,
        records: Sequence[_Record | None],
        names: Sequence[str],
        shape: tuple[int, int, int],
    ) -> Array:
        """One tensor of each row: [n, Z h w] of the type that readers get.

        `names` says which tensor of each row; all are of one `shape` (Z, h, w). Zeros where a
        sample is lost.
        """
        dtype, size = np.dtype(self._parts[0].identity.options.dtype), math.prod(shape)
        out = np.zeros((len(records), size), dtype)
        unit = math.gcd(8, size * dtype.itemsize)
        offsets = np.full(len(records), -1, dtype=np.int64)
        for slot, (record, row) in enumerate(zip(records, found.row.tolist(), strict=True)):
            if record is None:
                continue
            base = record.base.get(names[slot])
            if base is None:
                out[slot] = record.numbers(names[slot], dtype).reshape(-1, size)[row]
            else:
                offsets[slot] = (base + row * size * dtype.itemsize) // unit
        for part in np.unique(found.part[offsets >= 0]).tolist():
            mine = np.flatnonzero((found.part == part) & (offsets >= 0))
            out[mine] = self._window(part, size, dtype, unit)[offsets[mine]]
        if dtype != np.int8:
            return out
        scales = np.zeros((len(records), 2, shape[0]), np.float32)
        for slot, (record, row) in enumerate(zip(records, found.row.tolist(), strict=True)):
            if record is not None:
                scales[slot] = record.scales(names[slot], shape[0])[row]
        return restored(out.reshape(len(out), *shape), scales).reshape(len(out), size)

    def keys(self, found: Found, records: Sequence[_Record | None]) -> list[str]:
        """Each row's key; "" where a sample is lost."""
        pairs = zip(records, found.row.tolist(), strict=True)
        return ["" if record is None else record.key(row) for record, row in pairs]

    def column(self, found: Found, records: Sequence[_Record | None], name: str) -> Column:
        """One column of each row, as `column_values` gives it; None or NaN where one is lost."""
        rows = found.row.tolist()
        kind = self._parts[0].identity.options.column_kinds[name]
        size = vector_size(kind)
        if size is None:
            pairs = zip(records, rows, strict=True)
            return [None if r is None else r.arrays[name][row].as_py() for r, row in pairs]
        vectors = np.full((len(rows), size), np.nan, np.float32 if "float32" in kind else float)
        for slot, (record, row) in enumerate(zip(records, rows, strict=True)):
            if record is not None:
                vectors[slot] = record.arrays[name][row]
        return vectors

    def _wanted(self, found: Found) -> Iterable[tuple[int, int]]:
        there = ~found.is_lost
        pairs = zip(found.part[there].tolist(), found.number[there].tolist(), strict=True)
        return dict.fromkeys(pairs)

    def _window(self, part: int, size: int, dtype: np.dtype[Any], unit: int) -> Array:
        """Every run of `size` values in a mapped file, one at each `unit` bytes: a view."""
        window = self._windows.get((part, size))
        if window is None:
            mapped = self._parts[part].mapped
            assert mapped is not None, "only a file in mapped memory is read in place"
            bytes_ = np.frombuffer(mapped, np.uint8)
            usable = bytes_[: len(bytes_) - len(bytes_) % dtype.itemsize].view(dtype)
            count = (usable.nbytes - size * dtype.itemsize) // unit + 1
            window = np.lib.stride_tricks.as_strided(
                usable, (count, size), (unit, dtype.itemsize), writeable=False
            )
            self._windows[part, size] = window
        return window

    def _record(self, part: int, number: int) -> _Record:
        if self._parts[part].mapped is None:
            return self._fetch(part, number).result()
        if len(self._local) >= _MOST_RECORDS:
            self._local.popitem(last=False)
        self._local[part, number] = self._read(part, number)
        return self._local[part, number]

    def _fetch(self, part: int, number: int) -> Future[_Record]:
        """A record batch that is being read or was; least recently used ones are forgotten."""
        known = self._fetched.get((part, number))
        if known is not None:
            self._fetched.move_to_end((part, number))
            return known
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="latents")
        known = self._fetched[part, number] = self._pool.submit(self._read, part, number)
        self._held_bytes += self._parts[part].part.record_batches[number].bytes
        while self._held_bytes > self._memory_bytes and len(self._fetched) > 1:
            (old, place), _ = self._fetched.popitem(last=False)
            self._held_bytes -= self._parts[old].part.record_batches[place].bytes
        return known

    def _read(self, part: int, number: int) -> _Record:
        rows = self._parts[part]
        kinds = rows.identity.options.column_kinds
        return _Record(rows.record(number), self._tensors, kinds, rows.mapped)
