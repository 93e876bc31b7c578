"""Reading a latent store: by number, by key, in file order, in the image loader's order."""

import html
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from pipeline import storage
from pipeline.data.keys import find_key
from pipeline.data.manifest import POINTER as DATASET
from pipeline.errors import StoreError
from pipeline.latents.latent_file import LatentRows
from pipeline.latents.mending import encode_again
from pipeline.latents.receipt import POINTER
from pipeline.latents.shard_rows import ShardRows
from pipeline.latents.snapshot import Snapshot, last_published, read_pointer, read_snapshot
from pipeline.masking import printable

_READ_AHEAD = 8
"""Ranged reads under way at a time where the store is not local."""


@dataclass(frozen=True)
class Latent:
    """One image's latents: each tensor [Z, h, w] in the store's type, and the copied columns."""

    key: str
    tensors: dict[str, npt.NDArray[Any]]
    columns: dict[str, Any]


@dataclass(frozen=True)
class LatentStore:
    """A snapshot of a store, in the order of its source shards, less removed samples."""

    url: str
    snapshot: Snapshot

    @staticmethod
    def open(url: str, snapshot: str | None = None, *, flag: str = "--store") -> "LatentStore":
        """The current snapshot, or the one at this path in the store (`jobs.stores` lists them).

        Errors name `flag` for it.

        Raises `StoreError` if there is no store, or only a damaged one.
        """
        url = storage.absolute(url)
        if snapshot is not None:
            return LatentStore(url, read_snapshot(url, snapshot))
        pointer = read_pointer(url)
        if pointer is None:
            last = last_published(url)
            if last is None:
                raise no_store(url, flag)
            raise StoreError(
                f"{storage.join(url, POINTER)}: is gone; latents lie there still. "
                f"{encode_again(url, last)} finds them and writes it."
            )
        return LatentStore(url, read_snapshot(url, pointer.snapshot, pointer.sha256))

    def __len__(self) -> int:
        return self._first[-1]  # not summed anew over all shards for each item that is read

    @overload
    def __getitem__(self, number: int) -> Latent: ...
    @overload
    def __getitem__(self, number: slice) -> list[Latent]: ...
    def __getitem__(self, number: int | slice) -> Latent | list[Latent]:
        """The latent `number` (negative ones count from the end), by one ranged read; or a list."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.url}: holds {len(self)} latents, asked for number {number}")
        at, position = self.place(number % len(self))
        rows = self.shard_rows[at]
        batch = rows.read(rows.number_of(position))
        row = int(np.searchsorted(batch.positions, position))
        return Latent(
            batch.keys[row],
            {name: values[row] for name, values in batch.tensors.items()},
            {name: values[row] for name, values in batch.columns.items()},
        )

    def __iter__(self) -> Iterator[Latent]:
        """All latents in their order, by one ranged read each; `batches` reads many at once."""
        return map(self.__getitem__, range(len(self)))

    def place(self, number: int) -> tuple[int, int]:
        """Where latent `number` (>= 0) comes from: shard of the snapshot, position in the shard."""
        at = bisect_right(self._first, number) - 1
        shard = self.snapshot.shards[at]
        gone = sorted([sample.position for sample in shard.failed] + list(shard.removed))
        kept = number - self._first[at]
        return at, kept + bisect_right([place - n for n, place in enumerate(gone)], kept)

    def by_key(self, key: str) -> Latent:
        """The latent of this key, or of the image at this path, as people write it.

        The first call reads every file's keys, about 150 bytes each. Raises `KeyError` that names
        near ones for a key that is not there.
        """
        try:
            return self[self._number_of_key[find_key(key, self._number_of_key)]]
        except KeyError as error:
            raise KeyError(f"{self.url}: {error.args[0]}") from None

    def keys(self) -> Iterator[str]:
        """All keys, in the store's order."""
        return (key for batch in self.batches(()) for key in batch.keys)

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

    def batches(self, tensors: Sequence[str] | None = None) -> Iterator[LatentRows]:
        """All latents that count, a record batch at a time, in the store's order.

        Views of the file where the store is local; elsewhere read ahead, a ranged read each.
        `tensors` are the columns wanted, None for all. For training's order see `LatentLoader`.
        """
        if storage.local_path(self.url) is not None:
            for shard, number in self._places():
                yield self._read(shard, number, tensors)
            return
        with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="latents") as pool:
            waiting: deque[Future[LatentRows]] = deque()
            try:
                for shard, number in self._places():
                    waiting.append(pool.submit(self._read, shard, number, tensors))
                    if len(waiting) > _READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def shard_batches(self, shard: int) -> Iterator[LatentRows]:
        """The rows of one shard of the snapshot, less removed ones."""
        for number in range(len(self.snapshot.shards[shard].receipt.record_batches)):
            yield self._read(shard, number, None)

    def to_numpy(self, tensor: str = "mean") -> npt.NDArray[Any]:
        """One tensor of all latents in memory: [N, Z, h, w] in the store's type, in its order."""
        return np.concatenate([batch.tensors[tensor] for batch in self.batches((tensor,))])

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`: keys and copied columns of all latents, in the store's order."""
        names = ["key", *self.snapshot.identity.options.columns]
        return pa.Table.from_batches(
            [batch.record.select(names) for batch in self.batches(())]
        ).to_pandas()

    def __repr__(self) -> str:
        return (
            f"LatentStore {printable(storage.shown(self.url))}\n"
            f"{len(self):,} latents of {self.snapshot.identity.latent_shape}\n"
            f"model {self.model_digest}"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the same lines, and each channel's mean and standard deviation."""
        rows = [
            f"<tr><td>{channel}</td><td>{mean:.4f}</td><td>{std:.4f}</td></tr>"
            for channel, (mean, std) in enumerate(zip(self.mean, self.std, strict=True))
        ]
        head = "<tr><th>channel</th><th>mean</th><th>std</th></tr>"
        return f"<pre>{html.escape(repr(self))}</pre><table>{head}{''.join(rows)}</table>"

    def to_torch(self) -> "LatentDataset":
        """The store as a map-style torch dataset, for `torch.utils.data.DataLoader`."""
        return LatentDataset(self)

    @cached_property
    def shard_rows(self) -> list[ShardRows]:
        """One reader per shard of the snapshot."""
        identity = self.snapshot.identity
        return [ShardRows(self.url, shard.receipt, identity) for shard in self.snapshot.shards]

    def _places(self) -> Iterator[tuple[int, int]]:
        for shard, stored in enumerate(self.snapshot.shards):
            for number in range(len(stored.receipt.record_batches)):
                yield shard, number

    def _read(self, shard: int, number: int, tensors: Sequence[str] | None) -> LatentRows:
        rows = self.shard_rows[shard].read(number, tensors)
        removed = self.snapshot.shards[shard].removed
        if not removed:
            return rows
        kept = np.flatnonzero(~np.isin(rows.positions, np.array(removed)))
        return rows if len(kept) == len(rows) else rows.take(kept)

    @cached_property
    def _first(self) -> list[int]:
        return [0, *accumulate(shard.rows for shard in self.snapshot.shards)]

    @cached_property
    def _number_of_key(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys())}


class LatentDataset(Dataset[dict[str, Any]]):
    """Item i: `key`, each tensor [Z, h, w] in the store's type, and the copied columns."""

    def __init__(self, store: LatentStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, number: int) -> dict[str, Any]:
        latent = self.store[number]
        # A copy: mapped memory is read-only, which torch has no notion of.
        tensors = {name: torch.tensor(values) for name, values in latent.tensors.items()}
        return {"key": latent.key, **tensors, **latent.columns}


def no_store(url: str, flag: str) -> StoreError:
    """The error of a place that is no store, with what may have been meant by it."""
    near, hint = storage.near(url), f"give another `{flag} URL`."
    if near is not None and storage.exists(storage.join(near, POINTER)):
        hint = f"did you mean `{flag} {near}`?"
    elif any(storage.exists(storage.join(url, part, DATASET)) for part in ("", "train")):
        hint = f"it is a dataset. Encode it into one (jobs.encode), or {hint}"
    else:
        made = f"python -m jobs.encode --model URI --data URL --output {url}"
        hint = f"make one with `{made}`, or {hint}"
    return StoreError(f"{url}: there is no latent store here; {hint}")
