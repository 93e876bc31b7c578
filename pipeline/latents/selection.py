"""What of a snapshot counts for somebody: some of its parts, and of those the latents they want."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.latents.gather import Gather, Places
from pipeline.latents.identity import Identity
from pipeline.latents.latent_file import LatentRows
from pipeline.latents.part_rows import PartRows
from pipeline.latents.positions import Ids, Kept
from pipeline.latents.statistics import ChannelStatistics, empty, measure
from pipeline.latents.stored_shard import StoredPart
from pipeline.masking import shell_word
from pipeline.storage.row_filter import RowFilter, parse_where

_READ_AHEAD = 8
"""Ranged reads under way at a time where the store is not local: as many as the image reader has;
they wait for the network, so they cost no core."""


@dataclass(frozen=True)
class ShapedParts:
    """Parts of one shape, of which `kept` count."""

    shape: tuple[int, int, int]
    parts: tuple[StoredPart, ...]
    rows: tuple[PartRows, ...]
    kept: tuple[Kept, ...]
    batch_size: int

    @cached_property
    def places(self) -> Places:
        """Where each of them is, by its number among those of this shape."""
        return Places(self.parts, self.kept, self.batch_size)

    def gather(self, tensors: Sequence[str], memory_bytes: int) -> Gather:
        """Reads rows of these parts from here and there."""
        return Gather(self.rows, tensors, memory_bytes)


@dataclass(frozen=True)
class Selection:
    """Parts of the store at `url`; with `where` only the latents whose columns meet it."""

    url: str
    identity: Identity
    parts: tuple[StoredPart, ...]
    where: str

    @cached_property
    def rows(self) -> tuple[PartRows, ...]:
        """One reader per part."""
        return tuple(PartRows(self.url, stored.part, self.identity) for stored in self.parts)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shapes [Z, h, w] of the latents, each once."""
        return tuple(sorted({stored.part.shape for stored in self.parts}))

    @cached_property
    def latents(self) -> Places:
        """The latents that count."""
        return Places(self.parts, self._latents, self.identity.options.batch_size)

    @cached_property
    def samples(self) -> Places:
        """The samples that an order deals out: those that count, without latents or with.

        With `where`, those with latents that meet it.
        """
        return Places(self.parts, self._samples, self.identity.options.batch_size)

    def of_shape(self, shape: tuple[int, int, int]) -> ShapedParts:
        """The parts whose latents have this shape, and the samples that an order deals out."""
        mine = [n for n, stored in enumerate(self.parts) if stored.part.shape == shape]
        return ShapedParts(
            shape,
            tuple(self.parts[n] for n in mine),
            tuple(self.rows[n] for n in mine),
            tuple(self._samples[n] for n in mine),
            self.identity.options.batch_size,
        )

    @cached_property
    def statistics(self) -> ChannelStatistics:
        """Over all latents that count; with `where` they are read once for it."""
        options = self.identity.options
        found = empty(self.identity.latent_shape[0], options.content == "moments")
        if not self.where:
            for stored in self.parts:
                found = found.merge(stored.statistics)
            return found
        for batch in self.batches(options.tensors[:2]):
            if len(batch):
                first = batch.tensors[options.tensors[0]]
                found = found.merge(measure(first, batch.tensors.get("logvar")))
        return found

    def batches(self, tensors: Sequence[str] | None) -> Iterator[LatentRows]:
        """Every record batch's rows that count, in order; read ahead where the store is far."""
        if storage.local_path(self.url) is not None:
            for part, number in self.record_batches():
                yield self.read(part, number, tensors)
            return
        with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="latents") as pool:
            waiting: deque[Future[LatentRows]] = deque()
            try:
                for part, number in self.record_batches():
                    waiting.append(pool.submit(self.read, part, number, tensors))
                    if len(waiting) > _READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def record_batches(self) -> Iterator[tuple[int, int]]:
        """Part and number of each record batch, in order."""
        for part, stored in enumerate(self.parts):
            for number in range(len(stored.part.record_batches)):
                yield part, number

    def read(self, part: int, number: int, tensors: Sequence[str] | None) -> LatentRows:
        """The rows of a record batch that count; `tensors` None: all."""
        rows, stored = self.rows[part].read(number, tensors), self.parts[part]
        if not stored.removed and not self.where:
            return rows
        mask = self._latents[part].has(rows.positions)
        return rows if mask.all() else rows.take(np.flatnonzero(mask))

    @cached_property
    def _samples(self) -> list[Kept]:
        return self._latents if self.where else [stored.counted for stored in self.parts]

    @cached_property
    def _latents(self) -> list[Kept]:
        """Of each part, what counts; for `where` its columns are read once."""
        if not self.where:
            return [stored.latents for stored in self.parts]
        where, names = parse_where(self.where), (*self.identity.options.column_kinds, "key")
        if unknown := [name for name in where.columns if name not in names]:
            raise ConfigError(
                f"where {where.text}: {self.url} has no column {unknown[0]!r}; it has "
                f"{', '.join(names)}. Encode with `--columns {shell_word(unknown[0])}`."
            )
        pairs = zip(self.parts, self.rows, strict=True)
        return [stored.latents.intersected(_meeting(rows, where)) for stored, rows in pairs]


def _meeting(rows: PartRows, where: RowFilter) -> Ids:
    """The ranks of the latents of a part that meet it."""
    met = [np.zeros(0, np.int64)]
    for number in range(len(rows.part.record_batches)):
        record = rows.record(number)
        positions = record.column("position").to_numpy()
        mask = where.mask(pa.Table.from_batches([record]))
        met.append(rows.part.held.rank(positions[mask].astype(np.int64)))
    return np.concatenate(met)
