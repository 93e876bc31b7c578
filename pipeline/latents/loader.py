"""Latents for training, in the image loader's exact order: the same keys in the same slots."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline import storage
from pipeline.config import Tail
from pipeline.data.order import PADDED, Order, slots_of
from pipeline.errors import ConfigError, StoreError
from pipeline.latents.latent_file import LatentRows
from pipeline.latents.noise import coin, normal_noise
from pipeline.latents.store import LatentStore

_CHUNK = 64
"""Samples read together: as many as a record batch has by default, which is read whole."""
_MAX_WINDOW = 8
"""Chunks of a lane shuffled together: 512 latents, and memory is left for the other lanes."""
_READ_THREADS = 16
"""Reads wait for storage, not for cores."""
_PREFETCH = 4
"""Batches under way: enough for the longest read to be hidden behind three others."""


@dataclass(frozen=True)
class LatentBatch:
    """b samples: `latents` float32 [b, Z, h, w], `keys`, `valid` bool [b], `columns`.

    As in the image loader's batch, a padded slot has the key "" and is not valid; nor is a sample
    without latents, whose row is zero and whose key is in `failed` with the reason.
    """

    latents: Tensor
    keys: list[str]
    valid: Tensor
    columns: dict[str, list[Any]]
    failed: dict[str, str]
    epoch: int
    index: int
    slots: range


@dataclass(frozen=True)
class _Pending:
    index: int
    ids: npt.NDArray[np.int64]
    shards: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    records: dict[tuple[int, int], "Future[LatentRows]"]


class LatentLoader:
    """One epoch per iteration; each iteration after it is the next epoch.

    Its global batches follow from the snapshot, `seed` and `global_batch_size` alone. With `order`,
    or a state, of an image `Loader` over the same dataset they are that loader's, key by key.

    `sample`: z = mean + std * noise with noise of its own for each (seed, key, epoch), else the
    mean (or the draw that was stored). `flip`: half of the images, by a coin for each
    (seed, key, epoch), are the mirrored view.
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
        flip: bool = False,
        memory_bytes: int = 512 * 2**20,
        order: Order | None = None,
    ) -> None:
        options = store.snapshot.identity.options
        if sample and options.content != "moments":
            raise ConfigError(
                f"sample=True: {store.url} holds {options.content} only, and a draw needs mean and "
                "log-variance. Encode with `--content moments`."
            )
        if flip and not options.flip:
            raise ConfigError(f"flip=True: {store.url} has no flipped view. Encode with `--flip`.")
        self.store = store
        self._first = [0, *accumulate(shard.live for shard in store.snapshot.shards)]
        self.order = order or plan_order(
            store, global_batch_size, seed, memory_bytes, shuffle=shuffle, tail=tail
        )
        self._check(self.order)
        self.slots = slots_of(rank, world_size, self.order.batch_size)
        self.epoch = 0
        self._next_batch = 0
        self._started = False
        self._sample, self._flip = sample, flip
        self._tensors = options.tensors if flip else options.tensors[: 2 if sample else 1]
        self._local = storage.local_path(store.url) is not None
        self._records: OrderedDict[tuple[int, int], Future[LatentRows]] = OrderedDict()
        self._held_bytes, self._memory_bytes = 0, memory_bytes

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self.order.steps

    def __iter__(self) -> Iterator[LatentBatch]:
        self._started = True
        waiting: deque[_Pending] = deque()
        steps, epoch = self.order.steps, self.epoch
        with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="latents") as pool:
            try:
                for index in range(self._next_batch, steps):
                    while len(waiting) < _PREFETCH and index + len(waiting) < steps:
                        waiting.append(self._submit(index + len(waiting), pool))
                    batch = self._collect(waiting.popleft())
                    done, self._next_batch = divmod(index + 1, steps)
                    self.epoch = epoch + done
                    yield batch
            finally:
                pool.shutdown(cancel_futures=True)
                # What was cancelled must not be found by the next iteration.
                self._records.clear()
                self._held_bytes = 0

    def state_dict(self) -> dict[str, Any]:
        """Every argument of the order, and the batches consumed: the same on all ranks."""
        return {
            "dataset_digest": self.store.snapshot.dataset,
            "order": self.order.to_json(),
            "epoch": self.epoch,
            "batches": self._next_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at any world size; an image loader's state will do.

        Raises `StoreError` after iteration began, or if the state is of another dataset or seed.
        """
        if self._started:
            raise StoreError("load_state_dict: this loader has begun to read; load before that.")
        theirs = {"dataset_digest": state["dataset_digest"], **state["order"]}
        ours = {"dataset_digest": self.store.snapshot.dataset, **self.order.to_json()}
        # Chunk and window were chosen once, at the run's start, and stay.
        differing = [
            f"{name}: the state has {theirs[name]!r}, this loader {ours[name]!r}"
            for name in ours
            if name not in ("chunk", "window") and theirs[name] != ours[name]
        ]
        if differing:
            raise StoreError("load_state_dict: another order of samples: " + "; ".join(differing))
        self.order = Order(**state["order"])
        done, self._next_batch = divmod(state["batches"], max(1, self.order.steps))
        self.epoch = state["epoch"] + done

    def _check(self, order: Order) -> None:
        if order.samples != self._first[-1]:
            raise StoreError(
                f"{self.store.url}: its snapshot counts {self._first[-1]} samples, the order "
                f"{order.samples}. Give the order of a loader over the same dataset, and encode "
                "the dataset whole."
            )

    def _submit(self, index: int, pool: ThreadPoolExecutor) -> _Pending:
        ids = self.order.batch(self.epoch, index, self.slots)
        shards = np.searchsorted(self._first, ids, side="right") - 1
        positions = np.zeros_like(ids)
        records: dict[tuple[int, int], Future[LatentRows]] = {}
        for slot in np.flatnonzero(ids != PADDED).tolist():
            shard = int(shards[slot])
            live = self.store.snapshot.shards[shard].live_positions
            positions[slot] = live[int(ids[slot]) - self._first[shard]]
            number = self.store.shard_rows[shard].number_of(int(positions[slot]))
            if (shard, number) not in records:
                records[shard, number] = self._record(shard, number, pool)
        return _Pending(index, ids, shards, positions, records)

    def _record(self, shard: int, number: int, pool: ThreadPoolExecutor) -> "Future[LatentRows]":
        """A record batch that is being read or was; least recently used ones are forgotten."""
        found = self._records.get((shard, number))
        if found is not None:
            self._records.move_to_end((shard, number))
            return found
        rows = self.store.shard_rows[shard]
        if self._local:
            found = Future()
            found.set_result(rows.read(number, self._tensors))
        else:
            found = pool.submit(rows.read, number, self._tensors)
        self._records[shard, number] = found
        self._held_bytes += rows.receipt.record_batches[number].bytes
        while self._held_bytes > self._memory_bytes and len(self._records) > 1:
            (old, place), _ = self._records.popitem(last=False)
            self._held_bytes -= self.store.shard_rows[old].receipt.record_batches[place].bytes
        return found

    def _collect(self, pending: _Pending) -> LatentBatch:
        count, snapshot = len(pending.ids), self.store.snapshot
        latents = np.zeros((count, *snapshot.identity.latent_shape), dtype=np.float32)
        valid = np.zeros(count, dtype=np.bool_)
        keys, failed = [""] * count, dict[str, str]()
        columns: dict[str, list[Any]] = {
            name: [None] * count for name in snapshot.identity.options.columns
        }
        for slot in np.flatnonzero(pending.ids != PADDED).tolist():
            shard, position = int(pending.shards[slot]), int(pending.positions[slot])
            number = self.store.shard_rows[shard].number_of(position)
            rows = pending.records[shard, number].result()
            row = int(np.searchsorted(rows.positions, position))
            if row == len(rows) or rows.positions[row] != position:
                (lost,) = [f for f in snapshot.shards[shard].failed if f.position == position]
                keys[slot], failed[lost.key] = lost.key, lost.reason
                continue
            keys[slot], valid[slot] = rows.keys[row], True
            latents[slot] = self._latent(rows, row)
            for name, values in columns.items():
                values[slot] = rows.columns[name][row]
        return LatentBatch(
            latents=torch.from_numpy(latents),
            keys=keys,
            valid=torch.from_numpy(valid),
            columns=columns,
            failed=failed,
            epoch=self.epoch,
            index=pending.index,
            slots=self.slots,
        )

    def _latent(self, rows: LatentRows, row: int) -> npt.NDArray[np.float32]:
        key, seed = rows.keys[row], self.order.seed
        flipped = self._flip and coin(key, seed, f"flip of epoch {self.epoch}")
        suffix = "_flipped" if flipped else ""
        if not self._sample:
            primary = self.store.snapshot.identity.options.tensors[0]
            plain: npt.NDArray[np.float32] = rows.tensors[primary + suffix][row]
            return plain
        mean = rows.tensors[f"mean{suffix}"][row].astype(np.float32)
        std = np.exp(0.5 * rows.tensors[f"logvar{suffix}"][row].astype(np.float32))
        drawn: npt.NDArray[np.float32] = mean + std * normal_noise(
            key, seed, mean.shape, f"latent of epoch {self.epoch}"
        )
        return drawn


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
    samples = sum(shard.live for shard in store.snapshot.shards)
    if samples == 0:
        raise StoreError(f"{store.url}: holds no latents that count.")
    total = sum(shard.receipt.bytes for shard in store.snapshot.shards)
    average = max(1, total // max(1, sum(s.receipt.samples for s in store.snapshot.shards)))
    order = Order(samples, global_batch_size, seed, _CHUNK, 1, shuffle=shuffle, tail=tail)
    # A chunk may touch two record batches, which are read whole.
    touched = 2 * store.snapshot.identity.options.batch_size * average
    window = max(1, min(_MAX_WINDOW, memory_bytes // (order.lanes * touched)))
    return Order(samples, global_batch_size, seed, _CHUNK, window, shuffle=shuffle, tail=tail)
