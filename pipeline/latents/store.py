"""Reading a latent store: by number, by key, in file order, in the image loader's order."""

import html
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline import storage
from pipeline.data.keys import Numbered, Numbers, numbers_asked
from pipeline.data.manifest import POINTER as DATASET
from pipeline.errors import ConfigError, StoreError
from pipeline.json_value import JsonValue
from pipeline.latents.gather import Found, Gather
from pipeline.latents.latent_file import Latent, LatentRows
from pipeline.latents.receipt import POINTER
from pipeline.latents.repair_command import encode_again
from pipeline.latents.selection import Selection
from pipeline.latents.snapshot import Snapshot, last_published, read_pointer, read_snapshot
from pipeline.latents.statistics import ChannelStatistics
from pipeline.masking import printable, shell_word
from pipeline.storage.row_filter import parse_where


@dataclass(frozen=True)
class LatentStore(Numbered[Latent]):
    """A snapshot of a store, in the order of its source shards, less removed samples.

    With `where` it holds those latents alone whose columns meet it, as if there were no others;
    with `size` those of images of that size.
    """

    url: str
    snapshot: Snapshot
    where: str = ""
    size: int | None = None

    @staticmethod
    def open(
        url: storage.Place,
        snapshot: str | None = None,
        *,
        where: str = "",
        size: int | None = None,
        flag: str = "--store",
    ) -> "LatentStore":
        """The current snapshot, or the one at this path in the store (`jobs.stores` lists them).

        `where`: an expression over the columns that were copied, such as "aesthetic >= 5". `size`:
        which one, of a store of several. Raises `StoreError` if there is no store, or only a
        damaged one, and `ConfigError` for a size that it does not have, and for what is no path or
        URL; errors name `flag`.
        """
        found = LatentStore.open_all(url, snapshot, flag=flag)
        chosen = _chosen_size(found, size)
        return replace(found, where=parse_where(where).text if where else "", size=chosen)

    @staticmethod
    def open_all(
        url: storage.Place, snapshot: str | None = None, *, flag: str = "--store"
    ) -> "LatentStore":
        """Whatever a store holds, of all sizes: each image as often as there are sizes."""
        url = storage.absolute(storage.named(url, "LatentStore.open"))
        if snapshot is not None:
            return LatentStore(url, read_snapshot(url, snapshot))
        pointer = read_pointer(url)
        if pointer is None:
            raise _nothing_at(url, flag)
        return LatentStore(url, read_snapshot(url, pointer.snapshot, pointer.sha256))

    @cached_property
    def selection(self) -> Selection:
        """The parts and latents of it that count here."""
        every = self.snapshot.parts
        parts = tuple(p for p in every if self.size in (None, p.part.size))
        return Selection(self.url, self.snapshot.identity, parts, self.where)

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shapes [Z, h, w] of its latents, each once."""
        return self.selection.shapes

    def __len__(self) -> int:
        return len(self.selection.latents)

    def _one(self, number: int) -> Latent:
        at, position = self.place(number)
        rows = self.selection.rows[at]
        batch = rows.read(rows.number_of(position))
        row = int(np.searchsorted(batch.positions, position))
        return Latent(
            batch.keys[row],
            {name: values[row] for name, values in batch.tensors.items()},
            {name: values[row] for name, values in batch.columns.items()},
        )

    def place(self, number: int) -> tuple[int, int]:
        """Where latent `number` (>= 0) comes from: part of the selection, position in its shard."""
        found = self.selection.latents.find(np.array([number]))
        part = int(found.part[0])
        return part, int(self.selection.parts[part].part.held.array[found.rank[0]])

    def as_place(self) -> str:
        """Its URL, for what takes one; raises `ConfigError` where it is a part of what is there."""
        if self.where or self.size is not None:
            raise ConfigError(
                f"{self.url}: this LatentStore holds what `where` and `size` leave; what takes a "
                "place would take all. Give its `.url`, if that is meant."
            )
        return self.url

    def keys(self) -> Iterator[str]:
        """All keys, in the store's order."""
        return (key for batch in self.batches(()) for key in batch.keys)

    @property
    def mean(self) -> tuple[float, ...]:
        """Exact mean of each channel over all latents that count: [Z]."""
        return self.statistics.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Exact standard deviation of each channel of what is stored first: means, or draws."""
        return self.statistics.std

    @property
    def std_of_draws(self) -> tuple[float, ...]:
        """Exact standard deviation of each channel of z ~ q(z|x): sqrt(Var[mean] + E[variance]).

        What a trainer sees that draws. Raises `StoreError` where variances are not stored.
        """
        found = self.statistics.sample_std
        if found is not None:
            return found
        if self.snapshot.identity.options.content == "sample":
            return self.std
        raise StoreError(
            f"{self.url}: holds means alone, so nothing is known of draws. Read its means (`std`), "
            "or, if its model has a posterior, encode with `--content moments`."
        )

    @property
    def statistics(self) -> ChannelStatistics:
        """Over all latents that count; with `where` they are read once for it."""
        return self.selection.statistics

    @property
    def model_digest(self) -> str:
        """The digest of the model that made every latent in this store."""
        return self.snapshot.identity.model_digest

    def batches(self, tensors: Sequence[str] | None = None) -> Iterator[LatentRows]:
        """All latents that count, a record batch at a time, in the store's order.

        Views of the file where the store is local; elsewhere read ahead, a ranged read each.
        `tensors` are the columns wanted, None for all. For training's order see `LatentLoader`.
        """
        return self.selection.batches(tensors)

    def shard_batches(
        self, shard: int, tensors: Sequence[str] | None = None
    ) -> Iterator[LatentRows]:
        """The rows of one shard of the snapshot, less removed ones."""
        for part in self._parts_of_shards[shard]:
            for number in range(len(self.selection.parts[part].part.record_batches)):
                yield self.selection.read(part, number, tensors)

    @cached_property
    def _parts_of_shards(self) -> tuple[range, ...]:
        return _parts_of_shards(self.snapshot, self.size)

    def to_numpy(self, tensor: str | None = None) -> npt.NDArray[Any]:
        """One tensor of all latents in memory: [N, Z, h, w] in the store's order and type.

        None: the one stored first, `mean` (of a store of draws `sample`). Raises `ConfigError`
        for one that it does not have, and where they are of several shapes.
        """
        there = self.snapshot.identity.options.tensors
        tensor = there[0] if tensor is None else tensor
        if tensor not in there:
            raise ConfigError(
                f"{self.url}: has no tensor {tensor!r}. There are: {', '.join(there)}."
            )
        if len(self.shapes) > 1:
            raise ConfigError(
                f"{self.url}: has latents of {len(self.shapes)} shapes, which make no one array. "
                "Take them from `batches()`, or a store of one `size`."
            )
        return np.concatenate([batch.tensors[tensor] for batch in self.batches((tensor,))])

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`: keys and copied columns of all latents, in the store's order."""
        names = ["key", *self.snapshot.identity.options.column_kinds]
        return pa.Table.from_batches(
            [batch.record.select(names) for batch in self.batches(())]
        ).to_pandas()

    def __repr__(self) -> str:
        return (
            f"LatentStore {printable(storage.shown(self.url))}\n"
            f"{len(self):,} latents of {', '.join(map(str, self.shapes))}\n"
            f"model {self.model_digest}"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the same lines, and each channel's mean and standard deviation."""
        return f"<pre>{html.escape(repr(self))}</pre>{_table(self.mean, self.std)}"

    def to_torch(self) -> "LatentDataset":
        """The store as a map-style torch dataset, for `torch.utils.data.DataLoader`.

        Its tensors are of the store's type, float16 by default, which a float32 network refuses:
        `.float()` makes them that. `LatentLoader` gives float32.
        """
        return LatentDataset(self)


def _parts_of_shards(snapshot: Snapshot, size: int | None) -> tuple[range, ...]:
    """For each shard of the snapshot the numbers of its parts in the selection of this size."""
    ends = accumulate(
        sum(size in (None, stored.part.size) for stored in shard.parts) for shard in snapshot.shards
    )
    return tuple(range(first, end) for first, end in pairwise((0, *ends)))


def _table(means: tuple[float, ...], deviations: tuple[float, ...]) -> str:
    rows = [
        f"<tr><td>{channel}</td><td>{mean:.4f}</td><td>{std:.4f}</td></tr>"
        for channel, (mean, std) in enumerate(zip(means, deviations, strict=True))
    ]
    head = "<tr><th>channel</th><th>mean</th><th>std</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


Item: TypeAlias = "dict[str, Tensor | JsonValue | npt.NDArray[Any]]"

_GATHERED_BYTES = 512 * 2**20
"""Of record batches that one process keeps: each of a DataLoader's has its own."""


class LatentDataset(Dataset[Item]):
    """Item i: `key`, each tensor [Z, h, w] in the store's type, and the copied columns.

    A slice, a list or an array of numbers gives a list of items.
    """

    def __init__(self, store: LatentStore) -> None:
        self.store = store
        self._gathers: dict[int, Gather] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.store)

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: Numbers) -> list[Item]: ...
    def __getitem__(self, number: "int | Numbers") -> "Item | list[Item]":
        found = numbers_asked(number, len(self), f"LatentDataset {self.store.url}")
        if isinstance(found, int):
            return self.__getitems__([found])[0]
        return self.__getitems__(found)

    def __getitems__(self, numbers: Sequence[int]) -> list[Item]:
        """A batch's items, read together: what torch's `DataLoader` asks for."""
        chosen = self.store.selection
        found = chosen.latents.find(np.asarray(numbers, dtype=np.int64))
        shapes = [chosen.parts[part].part.shape for part in found.part.tolist()]
        items: list[Item] = [{} for _ in shapes]
        with self._lock:
            for shape in dict.fromkeys(shapes):
                slots = np.array([n for n, other in enumerate(shapes) if other == shape])
                for slot, item in zip(slots, self._read(shape, found.some(slots)), strict=True):
                    items[slot] = item
        return items

    def _read(self, shape: tuple[int, int, int], found: Found) -> list[Item]:
        options, gather = self.store.snapshot.identity.options, self._gather_of(os.getpid())
        records = gather.records(found)
        items: list[Item] = [{"key": key} for key in gather.keys(found, records)]
        for name in options.tensors:
            values = torch.from_numpy(gather.take(found, records, [name] * len(items), shape))
            for item, row in zip(items, values.view(-1, *shape), strict=True):
                item[name] = row
        for name in options.column_kinds:
            for item, value in zip(items, gather.column(found, records, name), strict=True):
                item[name] = value
        return items

    def _gather_of(self, process: int) -> Gather:
        """A process that was forked has none of its parent's threads, so it reads for itself."""
        if process not in self._gathers:
            tensors = self.store.snapshot.identity.options.tensors
            self._gathers = {process: Gather(self.store.selection.rows, tensors, _GATHERED_BYTES)}
        return self._gathers[process]

    def __getstate__(self) -> dict[str, LatentStore]:
        return {"store": self.store}

    def __setstate__(self, state: dict[str, LatentStore]) -> None:
        self.__init__(state["store"])  # type: ignore[misc]


def _chosen_size(store: LatentStore, size: int | None) -> int | None:
    """The size to select parts by, None where the store has one alone."""
    sizes = sorted({stored.part.size for stored in store.snapshot.parts})
    if size not in sizes if size is not None else len(sizes) > 1:
        said = ", ".join(map(str, sizes))
        raise ConfigError(
            f"{store.url}: holds images of {said} pixels, not of {size}: give `--size {sizes[0]}`."
            if size is not None
            else f"{store.url}: holds images of several sizes ({said}). Say which, as `--size "
            f"{sizes[0]}` (in Python: size=)."
        )
    return size if len(sizes) > 1 else None


def _nothing_at(url: str, flag: str) -> StoreError:
    """The error of a place without a pointer."""
    last = last_published(url)
    if last is None:
        return no_store(url, flag)
    return StoreError(
        f"{storage.join(url, POINTER)}: is gone; latents lie there still. "
        f"{encode_again(url, last)} finds them and writes it."
    )


def no_store(url: str, flag: str) -> StoreError:
    """The error of a place that is no store, with what may have been meant by it."""
    near, hint = storage.near(url), f"give another `{flag} URL`."
    if near is not None and storage.exists(storage.join(near, POINTER)):
        hint = f"did you mean `{flag} {shell_word(near)}`?"
    elif any(storage.exists(storage.join(url, part, DATASET)) for part in ("", "train")):
        hint = f"it is a dataset. Encode it into one (jobs.encode), or {hint}"
    else:
        made = f"python -m jobs.encode --model URI --data URL --output {shell_word(url)}"
        hint = f"make one with `{made}`, or {hint}"
    return StoreError(f"{url}: there is no latent store here; {hint}")
