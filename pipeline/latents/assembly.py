"""A batch of latents from rows here and there: converted, drawn and normalised at once, ahead."""

import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.json_value import JsonValue
from pipeline.key_noise import choices, coins, normal_noise
from pipeline.latents.gather import Found, Gather
from pipeline.latents.identity import CROP_BOXES, EncodeOptions, crop_suffix
from pipeline.latents.latent_file import Column
from pipeline.latents.positions import Ids
from pipeline.latents.selection import ShapedParts
from pipeline.latents.store import LatentStore

Normalize: TypeAlias = 'bool | Literal["model"]'
Give: TypeAlias = Literal["first", "draws", "moments"]
Floats = npt.NDArray[np.float32]

_AHEAD = 4
"""Batches that are ready before somebody asks for them."""
_SERIAL = 32_768
"""Values that torch converts on the calling thread; for more it wakes others, for each batch."""


@dataclass(frozen=True)
class LatentBatch:
    """b samples: `latents` [b, Z, h, w], `keys`, `valid` bool [b], `columns` as they were copied.

    All are of one shape, where the store has several.

    As in the image loader's batch, a padded slot has the key "" and is not valid; nor is a sample
    without latents, whose row is zero and whose key is in `failed` with the reason.
    `log_variance`, of the latents' shape, is there with `moments` alone.
    """

    latents: Tensor
    keys: list[str]
    valid: Tensor
    columns: dict[str, Column]
    failed: dict[str, str]
    epoch: int
    index: int
    slots: range
    log_variance: Tensor | None = None

    def __repr__(self) -> str:
        good, slots = int(self.valid.sum()), len(self.keys)
        kind = str(self.latents.dtype).removeprefix("torch.")
        beside = [*(["log_variance"] if self.log_variance is not None else []), *self.columns]
        return (
            f"LatentBatch {self.index} of epoch {self.epoch}: latents {kind} "
            f"{list(self.latents.shape)}, {good} of {slots} valid"
            + "".join(f", {name}" for name in beside)
        )


@dataclass(frozen=True)
class Affine:
    """(z - offset) * factor, each [Z]."""

    offset: tuple[float, ...]
    factor: tuple[float, ...]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Offset and factor as float32 [Z, 1, 1]."""
        offset, factor = (torch.tensor(each)[:, None, None] for each in (self.offset, self.factor))
        return offset, factor


def affine(store: LatentStore, normalize: Normalize, *, draws: bool) -> Affine | None:
    """What `normalize` asks for; `draws`: latents are drawn, here or where the batch goes.

    Raises `ConfigError` for a channel that never varies, and what the model says where it is asked.
    """
    if normalize is False:
        return None
    depth = store.snapshot.identity.latent_shape[0]
    if normalize not in (True, "model"):
        raise ConfigError(f"normalize={normalize!r}: known are True, False and 'model'.")
    if normalize == "model":
        return Affine(*store.snapshot.identity.scale.per_channel(depth))
    deviation = store.std_of_draws if draws else store.std
    if min(deviation) <= 0:
        raise ConfigError(
            f"normalize: channel {deviation.index(min(deviation))} of {store.url} never varies, so "
            "it has no deviation to be divided by."
        )
    return Affine(store.mean, tuple(1 / each for each in deviation))


@dataclass(frozen=True)
class Wanted:
    """What a batch's latents are: the tensor stored first, draws, or mean and log-variance."""

    give: Give
    flip: bool
    crops: bool
    stored_type: bool
    scaled: Affine | None

    def names(self, options: EncodeOptions) -> tuple[str, ...]:
        """The tensors of a view that it takes; other views have them with other endings."""
        return options.tensors[: 1 if self.give == "first" else 2]


@dataclass(frozen=True)
class Planned:
    """A batch before it is read: where each of its samples lies, in the slots that have one.

    `shape` is the number of its shape among the store's.
    """

    index: int
    shape: int
    slots: Ids
    found: Found


@dataclass(frozen=True)
class Source:
    """The parts of one shape, and what reads them."""

    shaped: ShapedParts
    options: EncodeOptions
    gather: Gather

    def lost(self, found: Found) -> Iterator[tuple[str, str]]:
        """Key and reason of each sample that has no latents."""
        for at in np.flatnonzero(found.is_lost).tolist():
            stored = self.shaped.parts[int(found.part[at])]
            position = int(stored.part.held.array[found.rank[at]])
            (sample,) = [each for each in stored.failed if each.position == position]
            yield sample.key, sample.reason


class Assembler:
    """Makes the batches of one epoch, from one thread; closing it ends the reads under way."""

    def __init__(
        self,
        sources: Sequence[Source],
        wanted: Wanted,
        epoch: int,
        slots: range,
        seed: int,
    ) -> None:
        self._sources, self._wanted, self._epoch = sources, wanted, epoch
        self._slots, self._seed = slots, seed

    def close(self) -> None:
        """Ends the reads under way."""
        for source in self._sources:
            source.gather.close()

    def begin(self, planned: Planned) -> None:
        """Asks for what the batch needs."""
        self._sources[planned.shape].gather.begin(planned.found)

    def batch(self, planned: Planned) -> LatentBatch:
        """The batch, whole."""
        source, found, count = self._sources[planned.shape], planned.found, len(self._slots)
        gather, options, shape = source.gather, source.options, source.shaped.shape
        records = gather.records(found)
        read = gather.keys(found, records)
        crops = self._crops(read, options)
        suffixes = [""] * len(read) if crops is None else [*map(crop_suffix, crops.tolist())]
        if self._wanted.flip:
            heads = coins(read, self._seed, f"flip of epoch {self._epoch}").tolist()
            suffixes = [s + "_flipped" * head for s, head in zip(suffixes, heads, strict=True)]
        taken = [
            gather.take(found, records, [name + suffix for suffix in suffixes], shape)
            for name in self._wanted.names(options)
        ]
        failed = dict(source.lost(found))
        lost = iter(failed)
        keys = [""] * count
        for slot, key, is_lost in zip(planned.slots, read, found.is_lost.tolist(), strict=True):
            keys[slot] = next(lost) if is_lost else key
        beside = {name: gather.column(found, records, name) for name in options.column_kinds}
        if crops is not None:
            boxes = zip(beside[CROP_BOXES], crops.tolist(), strict=True)
            beside["crop_box"] = [box and box[4 * n : 4 * n + 4] for box, n in boxes]
        columns = {name: _spread(count, planned.slots, values) for name, values in beside.items()}
        valid = np.zeros(count, dtype=np.bool_)
        valid[planned.slots] = ~found.is_lost
        made = self._values(taken, read, shape)
        values = [_placed(each, planned.slots, valid, shape) for each in made]
        return LatentBatch(
            latents=values[0],
            keys=keys,
            valid=torch.from_numpy(valid),
            columns=columns,
            failed=failed,
            epoch=self._epoch,
            index=planned.index,
            slots=self._slots,
            log_variance=values[1] if len(values) > 1 else None,
        )

    def _crops(self, keys: list[str], options: EncodeOptions) -> Ids | None:
        """Of each sample the number of the crop that it is in this epoch; None: it has its own."""
        if not self._wanted.crops:
            return None
        return choices(keys, options.crops, self._seed, f"crop of epoch {self._epoch}")

    def _values(
        self, taken: list[npt.NDArray[Any]], keys: list[str], shape: tuple[int, int, int]
    ) -> list[Tensor]:
        """What the batch gives out, of each row that was read: [n, Z h w]."""
        wanted = self._wanted
        if wanted.stored_type and wanted.give != "draws" and wanted.scaled is None:
            return [torch.from_numpy(each) for each in taken]
        stored = torch.from_numpy(taken[0]).dtype
        values = [_as_float32(torch.from_numpy(each)) for each in taken]
        latents, depth = values[0].numpy(), shape[0]
        if wanted.give == "draws":
            deviation = values.pop().numpy()
            deviation *= np.float32(0.5)
            np.exp(deviation, out=deviation)
            stream = f"latent of epoch {self._epoch}"
            deviation *= normal_noise(keys, self._seed, latents.shape[1:], stream)
            latents += deviation
        if wanted.scaled is not None:
            channels = latents.reshape(len(latents), depth, math.prod(shape[1:]))
            channels -= np.array(wanted.scaled.offset, np.float32)[:, None]
            channels *= np.array(wanted.scaled.factor, np.float32)[:, None]
            for log_variance in values[1:]:
                gain = [2 * math.log(abs(factor)) for factor in wanted.scaled.factor]
                spread = log_variance.numpy().reshape(channels.shape)
                spread += np.array(gain, np.float32)[:, None]
        return [each.to(stored) for each in values] if wanted.stored_type else values


def _placed(
    values: Tensor, slots: Ids, valid: npt.NDArray[np.bool_], shape: tuple[int, int, int]
) -> Tensor:
    """[n, Z h w] to [b, Z, h, w], zeros where a slot has no latents."""
    if not valid.all():
        rows = torch.zeros((len(valid), values.shape[1]), dtype=values.dtype)
        there = valid[slots]
        rows[torch.from_numpy(slots[there])] = values[torch.from_numpy(there)]
        values = rows
    shaped = values.view(len(valid), *shape)
    return shaped.pin_memory() if torch.cuda.is_available() else shaped


def _spread(count: int, slots: Ids, values: Column) -> Column:
    """The values in their slots, None or NaN in the others."""
    if isinstance(values, np.ndarray):
        vectors = np.full((count, values.shape[1]), np.nan, values.dtype)
        vectors[slots] = values
        return vectors
    found: list[JsonValue] = [None] * count
    for slot, value in zip(slots.tolist(), values, strict=True):
        found[slot] = value
    return found


def _as_float32(values: Tensor) -> Tensor:
    """[n, size] as float32. By torch: numpy converts float16 one by one, ten times as slowly."""
    if values.dtype == torch.float32:
        return values
    wide = torch.empty(values.shape, dtype=torch.float32)
    rows = max(1, _SERIAL // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        wide[start : start + rows] = values[start : start + rows]
    return wide


class Ahead:
    """Runs an iterator in a thread, a few items ahead; leaving the block ends both."""

    def __init__(self, items: Iterator[LatentBatch]) -> None:
        self._items = items
        self._ready: queue.Queue[LatentBatch | BaseException | None] = queue.Queue(_AHEAD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="latents-ahead", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(0.01)

    def __iter__(self) -> Iterator[LatentBatch]:
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                self._ready.put(item)
                if self._stop.is_set():
                    break
        except BaseException as error:  # noqa: BLE001 - raised again by whoever iterates
            end = error
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            self._ready.put(end)
