"""Rows of one stored part: mapped memory from local files, ranged reads from elsewhere."""

import functools
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import storage
from pipeline.data.shard_index import erased_key
from pipeline.errors import StorageError, StorageShortageError, StoreError
from pipeline.latents.identity import EncodeOptions, Identity
from pipeline.latents.latent_file import (
    LatentFileWriter,
    LatentRows,
    RecordBatchPlace,
    file_digest,
    record_digest,
    rows_of,
    schema_of,
)
from pipeline.latents.receipt import FailedSample, LatentPart, Receipt, latent_path
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.latents.stored_shard import StoredPart, StoredShard, removed_of
from pipeline.masking import shell_word
from pipeline.storage.local import explain
from pipeline.storage.tables import parse_batch

Array = npt.NDArray[Any]


class _Nothing(set[int]):
    """A set that stays empty."""

    def add(self, number: int) -> None:
        """Forgets it."""


@dataclass(frozen=True)
class PartRows:
    """Reads the latent file that a receipt's part names; safe to share between threads."""

    store: str
    part: LatentPart
    identity: Identity

    @property
    def url(self) -> str:
        """The latent file."""
        return storage.below(self.store, self.part.path)

    @functools.cached_property
    def mapped(self) -> pa.Buffer | None:
        """The whole file as mapped memory, None when it isn't local."""
        path = storage.local_path(self.url)
        if path is None:
            return None
        if not path.is_file() or path.stat().st_size != self.part.bytes:
            found = path.stat().st_size if path.is_file() else "no"
            raise StoreError(
                f"{self.url}: holds {found} bytes, its receipt says {self.part.bytes}. Run "
                f"`python -m jobs.verify --store {shell_word(self.store)}`; it says how to "
                "mend the store."
            )
        try:
            with pa.memory_map(str(path)) as file:
                return file.read_buffer()
        except OSError as error:
            raise explain(error, path, "reading") from None

    @functools.cached_property
    def _schema(self) -> pa.Schema:
        return schema_of(self.identity, self.part.shape)

    def read(self, number: int, names: Sequence[str] | None = None) -> LatentRows:
        """Record batch `number`; `names` are the tensors wanted, None for all."""
        return rows_of(
            self.record(number), self.identity, self.part.shape,
            self.identity.options.tensors if names is None else names,
        )  # fmt: skip

    def record(self, number: int) -> pa.RecordBatch:
        """Record batch `number` as Arrow has it, its bytes compared once."""
        place, mapped = self.part.record_batches[number], self.mapped
        data: Any = (
            storage.read(self.url, place.offset, place.offset + place.bytes)
            if mapped is None
            else mapped.slice(place.offset, place.bytes)
        )
        if number in self._checked:
            return pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        batch = self._check(data, place)
        self._checked.add(number)
        return batch

    @functools.cached_property
    def _checked(self) -> set[int]:
        """Record batches of mapped memory whose bytes this process has compared: once is enough.

        What is fetched anew is new bytes, and compared each time.
        """
        return set() if self.mapped is not None else _Nothing()

    def _check(self, data: Any, place: RecordBatchPlace) -> pa.RecordBatch:
        """The record batch, its checksum compared before Arrow looks at it, and then validated."""
        try:
            if len(data) != place.bytes or record_digest(data) != place.xxh3:
                raise StorageError("its bytes are not those that were written")  # noqa: TRY301
            batch = parse_batch(data, self._schema, self.url)
            if batch.num_rows != place.rows:
                raise StorageError(f"it has {batch.num_rows} rows, not {place.rows}")  # noqa: TRY301
        except StorageShortageError:
            raise  # no word on the file
        except StorageError as error:
            raise StoreError(
                f"{self.url}: the record batch at byte {place.offset} is damaged ({error}). Run "
                f"`python -m jobs.verify --store {shell_word(self.store)}`; it says how to "
                "mend the store."
            ) from None
        return batch

    def number_of(self, position: int) -> int:
        """The record batch that holds a source position which the part holds."""
        return int(self.part.held.rank(position)) // self.identity.options.batch_size


def statistics_without(rows: PartRows, removed: Sequence[int]) -> ChannelStatistics:
    """The part's statistics over what is left, from the fewer of the removed and the kept rows."""
    part, options = rows.part, rows.identity.options
    held = part.held.array
    gone = np.isin(held, np.asarray(removed, dtype=np.int64))
    stored = ~np.isin(held, [sample.position for sample in part.failed])
    subtract = int((stored & gone).sum()) * 2 <= part.rows
    chosen = stored & (gone if subtract else ~gone)
    counted = empty(part.shape[0], options.content == "moments")
    for number in np.unique(np.flatnonzero(chosen) // options.batch_size).tolist():
        batch = rows.read(number)
        mask = chosen[np.searchsorted(held, batch.positions)]
        counted = counted.merge(_measured(batch, options, mask))
    return part.statistics.without(counted) if subtract else counted


def _measured(
    batch: LatentRows, options: EncodeOptions, mask: npt.NDArray[np.bool_]
) -> ChannelStatistics:
    """Of those rows of a record batch, one or more."""
    log_variance = batch.tensors.get("logvar")
    return measure(
        batch.tensors[options.tensors[0]][mask],
        None if log_variance is None else log_variance[mask],
    )


def part_without(rows: PartRows, keys: Container[str]) -> LatentPart:
    """The part without the rows of these keys, in a file of its own, which is stored.

    They count as failed from then on, as an encoding of the dataset without them would have it.
    """
    part, options = rows.part, rows.identity.options
    failed, statistics = list(part.failed), empty(part.shape[0], options.content == "moments")
    with storage.temporary_folder("vae-erase-") as folder:
        with LatentFileWriter(folder / "part", rows.identity, part.shape) as writer:
            for number in range(len(part.record_batches)):
                batch = rows.read(number)
                kept = np.array([key not in keys for key in batch.keys], dtype=np.bool_)
                writer.write_record(batch.record.take(pa.array(np.flatnonzero(kept))))
                failed += [
                    FailedSample(position, erased_key(position), "erased")
                    for position in batch.positions[~kept].tolist()
                ]
                if kept.any():
                    statistics = statistics.merge(_measured(batch, options, kept))
        digest = file_digest(writer.path)
        name = part.path.rsplit("/", 1)[-1].removesuffix(".arrow").rpartition(".")[0]
        new = replace(
            part,
            path=latent_path(rows.identity.digest, name, digest),
            bytes=writer.path.stat().st_size,
            sha256=digest,
            record_batches=tuple(writer.places),
            failed=tuple(sorted(failed)),
            statistics=statistics,
        )
        storage.publish(storage.join(rows.store, new.path), writer.path)
    return new


def stored_shard(
    store: str, receipt: Receipt, identity: Identity, removed: Sequence[int]
) -> StoredShard:
    """A receipt as a dataset with these removed positions counts it."""
    parts = []
    for part in receipt.parts:
        gone = removed_of(part, sorted(removed))
        rows = PartRows(store, part, identity)
        statistics = statistics_without(rows, gone) if gone else part.statistics
        parts.append(StoredPart(part, gone, statistics))
    return StoredShard(receipt, tuple(sorted(removed)), tuple(parts))
