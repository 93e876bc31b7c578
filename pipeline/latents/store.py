"""Reading a latent store: by number, by key, or in batches."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.errors import StoreError
from pipeline.latents.latent_file import LatentRows
from pipeline.latents.shard_rows import ShardRows
from pipeline.latents.snapshot import Snapshot, StoredShard, read_pointer, read_snapshot


@dataclass(frozen=True)
class Latent:
    """One image's latents: each tensor [Z, h, w] in the store's type, and the copied columns."""

    key: str
    tensors: dict[str, npt.NDArray[Any]]
    columns: dict[str, Any]


@dataclass(frozen=True)
class LatentStore:
    """The current snapshot of a store, in the order of its source shards, less removed samples."""

    url: str
    snapshot: Snapshot

    @staticmethod
    def open(url: str) -> "LatentStore":
        """Raises `StoreError` if there is no store, or only a damaged one."""
        url = storage.absolute(url)
        pointer = read_pointer(url)
        if pointer is None:
            raise StoreError(
                f"{url}: there is no latent store here. Make one with `python -m jobs.encode`."
            )
        return LatentStore(url, read_snapshot(url, pointer.snapshot, pointer.sha256))

    def __len__(self) -> int:
        return self.snapshot.samples

    def __getitem__(self, number: int) -> Latent:
        """The latent `number` (negative ones count from the end)."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.url}: holds {len(self)} latents, asked for number {number}")
        number %= len(self)
        at = bisect_right(self._first, number) - 1
        place = number - self._first[at]
        rows = self._rows[at]
        for batch, kept in _kept_batches(rows, self.snapshot.shards[at]):
            if place < len(kept):
                row = int(kept[place])
                return Latent(
                    batch.keys[row],
                    {name: values[row] for name, values in batch.tensors.items()},
                    {name: values[row] for name, values in batch.columns.items()},
                )
            place -= len(kept)
        raise StoreError(f"{rows.url}: has fewer rows than its receipt says. Run jobs.verify.")

    @property
    def mean(self) -> tuple[float, ...]:
        """Exact mean of each channel over all latents that count: [Z]."""
        return self.snapshot.statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Exact standard deviation of each channel's means: [Z]."""
        return self.snapshot.statistics.std

    @property
    def model_digest(self) -> str:
        """The digest of the model that made every latent in this store."""
        return self.snapshot.identity.model_digest

    def batches(self) -> Iterator[LatentRows]:
        """All latents that count, a record batch at a time; views of the file where it is local."""
        for rows, shard in zip(self._rows, self.snapshot.shards, strict=True):
            for batch, kept in _kept_batches(rows, shard):
                yield batch if len(kept) == len(batch) else _chosen(batch, kept)

    @cached_property
    def _rows(self) -> list[ShardRows]:
        identity = self.snapshot.identity
        return [ShardRows(self.url, shard.receipt, identity) for shard in self.snapshot.shards]

    @cached_property
    def _first(self) -> list[int]:
        return [0, *accumulate(shard.rows for shard in self.snapshot.shards)]


def _kept_batches(
    rows: ShardRows, shard: StoredShard
) -> Iterator[tuple[LatentRows, npt.NDArray[np.int64]]]:
    """Each record batch of a shard, and which of its rows count."""
    removed = np.array(shard.removed, dtype=np.int64)
    for number in range(len(shard.receipt.record_batches)):
        batch = rows.read(number)
        yield batch, np.flatnonzero(~np.isin(batch.positions, removed))


def _chosen(batch: LatentRows, kept: npt.NDArray[np.int64]) -> LatentRows:
    return LatentRows(
        keys=[batch.keys[row] for row in kept],
        positions=batch.positions[kept],
        tensors={name: values[kept] for name, values in batch.tensors.items()},
        columns={name: [values[row] for row in kept] for name, values in batch.columns.items()},
    )
