"""Latents for training, in the image loader's exact order: the same keys in the same slots."""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Never

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from pipeline import storage
from pipeline.config import Tail
from pipeline.config.command_line import refuse_others
from pipeline.data.manifest import Count
from pipeline.data.order import PADDED, Order, shuffled, slots_of
from pipeline.errors import ConfigError, StoreError, first_refusal
from pipeline.json_value import Json
from pipeline.latents.assembly import (
    Affine,
    Ahead,
    Assembler,
    Give,
    LatentBatch,
    Normalize,
    Planned,
    Source,
    Wanted,
    affine,
)
from pipeline.latents.positions import Ids
from pipeline.latents.store import LatentStore

_CHUNK = 64
"""Samples read together: as many as a record batch has by default, which is read whole."""
_MAX_WINDOW = 8
"""Chunks of a lane shuffled together: 512 latents, and memory is left for the other lanes."""
_PREFETCH = 4
"""Batches that are assembled, and as many whose bytes are asked for, before their turn."""
_PLANNED = 128
"""Batches whose places are computed at once: by itself each costs as much as ten of them."""


@dataclass(frozen=True)
class Schedule:
    """Batches of `counts` samples of each shape, each of one shape, in an order of each epoch.

    `order` is that of all samples; each shape has it for its own ones. Who shares a step shares its
    shape, whatever the world.
    """

    order: Order
    counts: tuple[int, ...]

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """Of each shape's samples."""
        return tuple(replace(self.order, samples=count) for count in self.counts)

    @cached_property
    def steps(self) -> int:
        """Batches per epoch."""
        return sum(order.steps for order in self.orders)

    def shapes(self, epoch: int) -> tuple[npt.NDArray[np.int32], Ids]:
        """Of each step of an epoch: its shape's number, and how many of that shape came before."""
        steps = [order.steps for order in self.orders]
        shape = np.repeat(np.arange(len(steps), dtype=np.int32), steps)
        if len(steps) == 1:
            return shape, np.arange(len(shape))
        if self.order.shuffle:
            shape = shape[shuffled(len(shape), self.order.seed, epoch)]
        before = np.zeros(len(shape), dtype=np.int64)
        for number in range(len(steps)):
            mine = shape == number
            before[mine] = np.arange(int(mine.sum()))
        return shape, before

    def ids(self, epoch: int, shape: int, batches: Ids, slots: range) -> Ids:
        """The samples, numbered within their shape, of some batches of one shape: [n, len(slots)].

        -1 where a slot is padded.
        """
        order = self.orders[shape]
        slot = np.arange(slots.start, slots.stop, dtype=np.int64)
        per_lane = order.batch_size // order.lanes
        lane = np.broadcast_to(slot // per_lane, (len(batches), len(slot))).reshape(-1)
        place = (batches[:, None] * per_lane + slot % per_lane).reshape(-1)
        return order.lane_samples(epoch, lane, place).reshape(len(batches), len(slot))


@dataclass(frozen=True)
class _State:
    """What a loader's state says, the image loader's too."""

    dataset_digest: str
    order: Order
    epoch: Count
    batches: Count
    where: str = ""
    size: int | None = None

    def facts(self) -> Json:
        """What must be the same here as where the state was taken.

        Chunk and window were chosen once, at the run's start, and stay.
        """
        order = {k: v for k, v in self.order.to_json().items() if k not in ("chunk", "window")}
        rest = {"dataset_digest": self.dataset_digest, "where": self.where, "size": self.size}
        return {**rest, **order}


class LatentLoader:
    """One epoch per iteration; each iteration after it is the next epoch.

    Leaving an iteration, also by `next(iter(loader))`, and iterating again goes on with the next
    batch: what was looked at is not in the rest of that epoch. To look first, take another loader
    (same seed, same batches) or `store[0:64]`.

    Its global batches follow from the snapshot, `seed` and `global_batch_size` alone. With `order`,
    or a state, of an image `Loader` over the same dataset they are that loader's, key by key.
    Batches are assembled ahead by a thread, in pinned memory where there is a GPU.

    `sample`: z = mean + std * noise with noise of its own for each (seed, key, epoch), else the
    mean (or the draw that was stored). `moments`: the mean, and the log-variance beside it, for
    drawing elsewhere. `flip`: half of the images, by a coin for each (seed, key, epoch), are the
    mirrored view. `crops`: each image is one of its stored random crops, by a draw for each (seed,
    key, epoch), and `crop_box` tells where it lay. `normalize`: (z - `offset`) * `factor` for each
    channel, to deviation 1 over the store, or as the `model`'s publisher says. `stored_type`: in
    the store's type and not in float32, which int8 is given as in any case.
    """

    def __init__(
        self,
        store: LatentStore,
        *,
        global_batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: Tail = "pad",
        sample: bool = False,
        moments: bool = False,
        flip: bool = False,
        crops: bool = False,
        normalize: Normalize = False,
        stored_type: bool = False,
        memory_bytes: int = 512 * 2**20,
        order: Order | None = None,
        **others: Never,
    ) -> None:
        """Raises `ConfigError` for what is no store, for another argument, for what it lacks."""
        if not isinstance(store, LatentStore):
            raise storage.not_opened(store, LatentStore, "LatentLoader")
        refuse_others(LatentLoader, others)
        options = store.snapshot.identity.options
        if (sample or moments) and options.content != "moments":
            raise ConfigError(
                f"sample, moments: {store.url} holds {options.content} only, and a draw needs mean "
                "and log-variance. Encode with `--content moments`."
            )
        if sample and moments:
            raise ConfigError("sample, moments: either is drawn here, or both are given out.")
        if flip and not options.flip:
            raise ConfigError(f"flip=True: {store.url} has no flipped view. Encode with `--flip`.")
        if crops and not options.crops:
            raise ConfigError(f"crops=True: {store.url} has no crops. Encode with `--crops 4`.")
        self.store = store
        self.order = order or plan_order(
            store, global_batch_size, seed, memory_bytes, shuffle=shuffle, tail=tail
        )
        self._check(self.order, given=order is not None)
        self.slots = slots_of(rank, world_size, self.order.batch_size)
        self.epoch = 0
        self._next_batch = 0
        self._started = False
        scaled = affine(store, normalize, draws=sample or moments)
        give: Give = "draws" if sample else "moments" if moments else "first"
        self._wanted = Wanted(give, flip, crops, stored_type, scaled)
        tensors = options.tensors if flip or crops else self._wanted.names(options)
        self._sources = [
            Source(shaped, options, shaped.gather(tensors, memory_bytes // len(store.shapes)))
            for shaped in map(store.selection.of_shape, store.shapes)
        ]
        depth = store.snapshot.identity.latent_shape[0]
        plain = Affine((0.0,) * depth, (1.0,) * depth)
        self.offset, self.factor = (scaled or plain).tensors

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self._schedule.steps

    def __len__(self) -> int:
        """Batches per epoch, as `steps_per_epoch`."""
        return self.steps_per_epoch

    def __repr__(self) -> str:
        shapes = " or ".join(" x ".join(map(str, shape)) for shape in self.store.shapes)
        return (
            f"LatentLoader of {self.steps_per_epoch:,} batches an epoch, {len(self.slots)} of "
            f"{self.order.batch_size} latents each, {shapes}; at epoch {self.epoch}, batch "
            f"{self._next_batch}"
        )

    def __iter__(self) -> Iterator[LatentBatch]:
        self._started = True
        steps, epoch = self.steps_per_epoch, self.epoch
        with Ahead(self._assembled(epoch, self._next_batch)) as batches:
            for batch in batches:
                done, self._next_batch = divmod(batch.index + 1, steps)
                self.epoch = epoch + done
                yield batch

    def state_dict(self) -> Json:
        """Every argument of the order, and the batches consumed: the same on all ranks."""
        return {
            "dataset_digest": self.store.snapshot.dataset,
            "order": self.order.to_json(),
            "where": self.store.where,
            "size": self.store.size,
            "epoch": self.epoch,
            "batches": self._next_batch,
        }

    def load_state_dict(self, state: Json) -> None:
        """Goes on where `state` was taken, at any world size; an image loader's state will do.

        Raises `StoreError` after iteration began, or if the state is of another dataset or seed.
        """
        if self._started:
            raise StoreError("load_state_dict: this loader has begun to read; load before that.")
        try:
            theirs = TypeAdapter(_State).validate_python(state)
        except ValidationError as error:
            raise StoreError(
                f"load_state_dict: this is no loader's state: {first_refusal(error)}"
            ) from None
        ours = TypeAdapter(_State).validate_python(self.state_dict()).facts()
        differing = [
            f"{name}: the state has {value!r}, this loader {ours[name]!r}"
            for name, value in theirs.facts().items()
            if value != ours[name]
        ]
        if differing:
            raise StoreError("load_state_dict: another order of samples: " + "; ".join(differing))
        self.order = theirs.order
        done, self._next_batch = divmod(theirs.batches, max(1, self.steps_per_epoch))
        self.epoch = theirs.epoch + done

    @property
    def _schedule(self) -> Schedule:
        counts = tuple(len(source.shaped.places) for source in self._sources)
        return Schedule(self.order, counts)

    def _check(self, order: Order, *, given: bool) -> None:
        samples = len(self.store.selection.samples)
        if given and len(self.store.shapes) > 1:
            raise ConfigError(
                f"order: {self.store.url} has latents of {len(self.store.shapes)} shapes, and an "
                "image loader's batches mix them. Leave order out."
            )
        if order.samples != samples:
            raise StoreError(
                f"{self.store.url}: its snapshot counts {samples} samples, the order "
                f"{order.samples}. Give the order of a loader over the same dataset, and encode "
                "the dataset whole."
            )

    def _assembled(self, epoch: int, first: int) -> Iterator[LatentBatch]:
        """The batches of an epoch from `first` on; what they need is asked for ahead."""
        waiting: deque[Planned] = deque()
        place = epoch, self.slots, self.order.seed
        with closing(Assembler(self._sources, self._wanted, *place)) as assembler:
            for planned in self._planned(epoch, first):
                assembler.begin(planned)
                waiting.append(planned)
                if len(waiting) > _PREFETCH:
                    yield assembler.batch(waiting.popleft())
            while waiting:
                yield assembler.batch(waiting.popleft())

    def _planned(self, epoch: int, first: int) -> Iterator[Planned]:
        schedule = self._schedule
        shapes, numbers = schedule.shapes(epoch)
        for start in range(first, len(shapes), _PLANNED):
            part = slice(start, start + _PLANNED)
            ids = np.empty((len(shapes[part]), len(self.slots)), np.int64)
            for shape in np.unique(shapes[part]).tolist():
                mine = shapes[part] == shape
                ids[mine] = schedule.ids(epoch, shape, numbers[part][mine], self.slots)
            for at, shape in enumerate(shapes[part].tolist()):
                slots = np.flatnonzero(ids[at] != PADDED)
                found = self._sources[shape].shaped.places.find(ids[at][slots])
                yield Planned(start + at, shape, slots, found)


def plan_order(
    store: LatentStore,
    global_batch_size: int,
    seed: int,
    memory_bytes: int,
    *,
    shuffle: bool,
    tail: Tail,
) -> Order:
    """Chooses the window so that one rank alone would keep at most `memory_bytes` open."""
    samples, parts = len(store.selection.samples), store.selection.parts
    if samples == 0:
        raise StoreError(f"{store.url}: holds no latents that count.")
    total = sum(part.part.bytes for part in parts)
    average = max(1, total // max(1, sum(len(part.part.held) for part in parts)))
    order = Order(samples, global_batch_size, seed, _CHUNK, 1, shuffle=shuffle, tail=tail)
    # A chunk may touch two record batches, which are read whole.
    touched = 2 * store.snapshot.identity.options.batch_size * average
    window = max(1, min(_MAX_WINDOW, memory_bytes // (order.lanes * touched)))
    return Order(samples, global_batch_size, seed, _CHUNK, window, shuffle=shuffle, tail=tail)
