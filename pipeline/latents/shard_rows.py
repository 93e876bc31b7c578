"""Rows of one stored shard: mapped memory from local files, ranged reads from elsewhere."""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import storage
from pipeline.errors import StorageError, StoreError
from pipeline.latents.identity import Identity
from pipeline.latents.latent_file import LatentRows, RecordBatchPlace, rows_of, schema_of
from pipeline.latents.receipt import Receipt
from pipeline.latents.snapshot import StoredShard
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.storage.tables import parse_batch

Array = npt.NDArray[Any]


class _Nothing(set[int]):
    """A set that stays empty."""

    def add(self, number: int) -> None:
        """Forgets it."""


@dataclass(frozen=True)
class ShardRows:
    """Reads the latent file that a receipt names; safe to share between threads."""

    store: str
    receipt: Receipt
    identity: Identity

    @property
    def url(self) -> str:
        """The latent file."""
        return storage.below(self.store, self.receipt.path)

    @functools.cached_property
    def _mapped(self) -> pa.Buffer | None:
        """The whole file as mapped memory, None when it isn't local."""
        path = storage.local_path(self.url)
        if path is None:
            return None
        if not path.is_file() or path.stat().st_size != self.receipt.bytes:
            found = path.stat().st_size if path.is_file() else "no"
            raise StoreError(
                f"{self.url}: holds {found} bytes, its receipt says {self.receipt.bytes}. Run "
                f"`python -m jobs.verify --store {self.store}`; it says how to mend the store."
            )
        with pa.memory_map(str(path)) as file:
            return file.read_buffer()

    @functools.cached_property
    def _schema(self) -> pa.Schema:
        return schema_of(self.identity)

    def read(self, number: int, names: Sequence[str] | None = None) -> LatentRows:
        """Record batch `number`; `names` are the tensors wanted, None for all."""
        place, mapped = self.receipt.record_batches[number], self._mapped
        data: Any = (
            storage.read(self.url, place.offset, place.offset + place.bytes)
            if mapped is None
            else mapped.slice(place.offset, place.bytes)
        )
        if number in self._checked:
            batch = pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        else:
            batch = self._check(data, place)
            self._checked.add(number)
        return rows_of(
            batch, self.identity, self.identity.options.tensors if names is None else names
        )

    @functools.cached_property
    def _checked(self) -> set[int]:
        """Record batches of mapped memory whose bytes this process has compared: once is enough.

        What is fetched anew is new bytes, and compared each time.
        """
        return set() if self._mapped is not None else _Nothing()

    def _check(self, data: Any, place: RecordBatchPlace) -> pa.RecordBatch:
        """The record batch, its checksum compared before Arrow looks at it, and then validated."""
        try:
            if len(data) != place.bytes or zlib.crc32(data) != place.crc32:
                raise StorageError("its bytes are not those that were written")  # noqa: TRY301
            batch = parse_batch(data, self._schema, self.url)
            if batch.num_rows != place.rows:
                raise StorageError(f"it has {batch.num_rows} rows, not {place.rows}")  # noqa: TRY301
        except StorageError as error:
            raise StoreError(
                f"{self.url}: the record batch at byte {place.offset} is damaged ({error}). Run "
                f"`python -m jobs.verify --store {self.store}`; it says how to mend the store."
            ) from None
        return batch

    def number_of(self, position: int) -> int:
        """The record batch that holds a source position."""
        return position // self.identity.options.batch_size


def statistics_without(rows: ShardRows, removed: Sequence[int]) -> ChannelStatistics:
    """The shard's statistics over what is left, from the fewer of the removed and the kept rows."""
    receipt, options = rows.receipt, rows.identity.options
    gone = np.zeros(receipt.samples, dtype=bool)
    gone[np.asarray(removed, dtype=np.int64)] = True
    stored = np.ones(receipt.samples, dtype=bool)
    stored[[sample.position for sample in receipt.failed]] = False
    subtract = int((stored & gone).sum()) * 2 <= receipt.rows
    chosen = stored & (gone if subtract else ~gone)
    channels, height, width = rows.identity.latent_shape
    part = empty(channels, height * width, options.content == "moments")
    for number in sorted({rows.number_of(p) for p in np.flatnonzero(chosen).tolist()}):
        batch = rows.read(number)
        mask = chosen[batch.positions]
        log_variance = batch.tensors.get("logvar")
        part = part.merge(
            measure(
                batch.tensors[options.tensors[0]][mask],
                None if log_variance is None else log_variance[mask],
            )
        )
    return receipt.statistics.without(part) if subtract else part


def stored_shard(rows: ShardRows, removed: Sequence[int]) -> StoredShard:
    """A receipt as a dataset with these removed positions counts it."""
    statistics = statistics_without(rows, removed) if removed else rows.receipt.statistics
    return StoredShard(rows.receipt, tuple(sorted(removed)), statistics)
