"""The loader: exact batches at full speed, from threads into preallocated tensors."""

import os
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline import storage
from pipeline.config import Crop, PreprocessConfig, Resize, Tail
from pipeline.data.batch import Batch
from pipeline.data.cache import ChunkCache, DecodedCache
from pipeline.data.dataset import Dataset
from pipeline.data.fetch import RawSample, SampleReader
from pipeline.data.layout import alone_slots, local_ranks, plan_order
from pipeline.data.order import PADDED, Order, slots_of
from pipeline.data.preprocess import is_mirrored, preprocess_into, sample_draw
from pipeline.data.stall import describe_threads
from pipeline.data.transform import apply_transform, load_transform
from pipeline.errors import DatasetError, SampleError

FETCH_THREADS = 8
"""Ranged reads under way at once; they wait for the network, so they cost no core."""
MOST_AHEAD = 16
"""Batches beyond the queued ones whose chunks are fetched already, at most."""
MOST_BEGUN = 65_536
"""Chunks of which it is remembered that their fetch has begun."""
MAX_LISTED = 1000


@dataclass
class LoaderStats:
    """What a rank has done so far.

    `wait_seconds` are those that the caller waited for a batch; the threads' own seconds for
    reading and for decoding are added up.
    """

    samples: int = 0
    bytes_fetched: int = 0
    requests: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_samples: list[tuple[str, str]] = field(default_factory=list)
    wait_seconds: float = 0.0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    queued_batches: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def totals(self) -> dict[str, Any]:
        """The numbers under the names of the metrics that they feed."""
        return {
            "samples_total": self.samples,
            "fetch_seconds_total": self.fetch_seconds,
            "decode_seconds_total": self.decode_seconds,
            "fetched_bytes_total": self.bytes_fetched,
            "bad_samples_total": dict(self.bad),
            "retries_total": dict(storage.retry_counts()),
            "cache_hits_total": self.cache_hits,
            "cache_misses_total": self.cache_misses,
            "queued_batches": self.queued_batches,
        }


@dataclass(frozen=True)
class _Row:
    """What one slot came to: its key, its columns, and why it is bad, if it is."""

    key: str
    columns: dict[str, Any]
    error: str | None
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0


class Loader:
    """One epoch per iteration; each iteration after it is the next epoch.

    Rank r of `world_size` gets its slots of every global batch. The sequence of global batches
    follows from the dataset, `seed` and `global_batch_size` alone. Leaving an iteration and
    iterating again goes on with the next batch. `close()` ends the threads.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        global_batch_size: int,
        image_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: Tail = "pad",
        threads: int | None = None,
        channels: Literal[1, 3] = 3,
        crop: Crop = "center",
        resize: Resize = "bilinear",
        flip: bool = False,
        transform: str | None = None,
        columns: Sequence[str] = (),
        prefetch_batches: int = 4,
        memory_bytes: int = 512 * 2**20,
        stall_seconds: float = 300.0,
        cache_folder: str | None = None,
        cache_bytes: int = 64 * 2**30,
        cache_decoded: bool = False,
    ) -> None:
        self.dataset = dataset
        self.preprocess = PreprocessConfig(
            image_size=image_size, channels=channels, crop=crop, resize=resize
        )
        self.order = plan_order(
            dataset, global_batch_size, seed, memory_bytes, shuffle=shuffle, tail=tail
        )
        self.slots = slots_of(rank, world_size, global_batch_size)
        self.stats = LoaderStats()
        self.epoch = 0
        self._flip, self._columns = flip, tuple(columns)
        self._transform_path = transform
        self._transform = load_transform(transform) if transform else None
        self._next_batch = 0
        self._started = False
        self._prefetch = max(1, prefetch_batches)
        self._memory_bytes = memory_bytes
        self._chunks: ChunkCache | None = None
        self._decoded: DecodedCache | None = None
        if cache_folder is not None:
            self._chunks = ChunkCache(Path(cache_folder), cache_bytes)
            # A random crop is another image in each epoch, and columns lie beside the bytes.
            if cache_decoded and crop != "random" and not columns:
                self._decoded = DecodedCache(Path(cache_folder), dataset, self.preprocess)
        self._stall_seconds = stall_seconds
        self._reader = SampleReader(dataset, self.order.chunk, memory_bytes, columns, self._chunks)
        self._threads = threads or max(1, len(os.sched_getaffinity(0)) // local_ranks(world_size))
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        self._io = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._alone = alone_slots(self.order, self.slots, world_size)
        self._waiting: deque[_Pending] = deque()
        self._fetched = 0
        self._begun: OrderedDict[tuple[int, int], None] = OrderedDict()

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self.order.steps

    @property
    def memory_bound_bytes(self) -> int:
        """The most bytes of encoded samples and decoded batches that this rank keeps."""
        size = self.preprocess.image_size
        batch = len(self.slots) * self.preprocess.channels * size * size
        return self._memory_bytes + (self._prefetch + 1) * batch

    def __iter__(self) -> Iterator[Batch]:
        self._started = True
        epoch = self.epoch
        while self.epoch == epoch:
            self._fill_queue()
            if not self._waiting:
                return
            started = time.perf_counter()
            # It leaves the queue when it is whole: an interrupt or an error here loses no batch.
            batch = self._collect(self._waiting[0])
            self.stats.wait_seconds += time.perf_counter() - started
            self._waiting.popleft()
            self._next_batch = batch.index + 1
            if self._next_batch == self.order.steps:
                self.epoch, self._next_batch = epoch + 1, 0
            yield batch

    def _fill_queue(self) -> None:
        """Keeps `prefetch_batches` batches in work, into the next epoch too: no thread rests.

        What is read in order is read once (evaluation), so then nothing is begun after the end.
        """
        steps = self.order.steps
        while steps and len(self._waiting) < self._prefetch:
            ahead = self._next_batch + len(self._waiting)
            if ahead >= steps and not self.order.shuffle:
                return
            self._waiting.append(self._submit(self.epoch + ahead // steps, ahead % steps))
        if not self._reader.is_local:
            self._fetch_ahead()

    def _fetch_ahead(self) -> None:
        """Begins to fetch what the batches behind the queued ones need, each chunk once."""
        steps = self.order.steps
        queued = self.epoch * steps + self._next_batch + len(self._waiting)
        self._fetched = max(self._fetched, queued)
        while self._fetched < queued + self._ahead():
            epoch, index = divmod(self._fetched, steps)
            if epoch > self.epoch and not self.order.shuffle:
                return
            ids = self.order.batch(epoch, index, self.slots)
            ids = ids[(ids != PADDED) & ~self._alone]
            if self._decoded is not None:
                ids = ids[~self._decoded.has(ids)]
            chunks, first = np.unique(ids // self.order.chunk, return_index=True)
            for chunk, sample in zip(chunks.tolist(), ids[first].tolist(), strict=True):
                if (epoch, chunk) not in self._begun:
                    self._begun[epoch, chunk] = None
                    self._io.submit(self._reader.warm, sample)
            while len(self._begun) > MOST_BEGUN:
                self._begun.popitem(last=False)
            self._fetched += 1

    def _ahead(self) -> int:
        """As many batches as one window of each lane lasts, the queued ones among them."""
        window = self.order.chunk * self.order.window * self.order.lanes // self.order.batch_size
        return max(1, min(MOST_AHEAD, window - self._prefetch))

    def state_dict(self) -> dict[str, Any]:
        """Every argument of the order, and the batches consumed: the same on all ranks."""
        return {
            "dataset_digest": self.dataset.digest,
            "order": self.order.to_json(),
            "flip": self._flip,
            "transform": self._transform_path,
            "epoch": self.epoch,
            "batches": self._next_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken, at any world size.

        Raises `DatasetError` after iteration began, or if the state is of another order.
        """
        if self._started:
            raise DatasetError("load_state_dict: this loader has begun to read; load before that.")
        mine = self.state_dict()
        # Chunk and window were chosen once, at the run's start, and stay.
        stated = {k: v for k, v in state["order"].items() if k not in ("chunk", "window")}
        differing = [
            f"{name}: the state has {theirs!r}, this loader {ours!r}"
            for name, theirs, ours in [
                ("dataset_digest", state["dataset_digest"], mine["dataset_digest"]),
                ("flip", state["flip"], mine["flip"]),
                ("transform", state.get("transform"), mine["transform"]),
                *((name, value, mine["order"][name]) for name, value in stated.items()),
            ]
            if theirs != ours
        ]
        if differing:
            raise DatasetError("load_state_dict: another order of samples: " + "; ".join(differing))
        self.order = Order(**state["order"])
        self._reader = SampleReader(
            self.dataset, self.order.chunk, self._memory_bytes, self._columns, self._chunks
        )
        done, self._next_batch = divmod(state["batches"], max(1, self.order.steps))
        self.epoch = state["epoch"] + done

    def close(self) -> None:
        """Ends the threads; work under way is finished first."""
        self._reader.close()
        self._io.shutdown(wait=True)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, epoch: int, index: int) -> "_Pending":
        ids = self.order.batch(epoch, index, self.slots).tolist()
        size = self.preprocess.image_size
        # numpy asks for huge pages where torch does not: decoding into them is a tenth faster.
        shape = (len(ids), self.preprocess.channels, size, size)
        images = torch.from_numpy(np.empty(shape, np.uint8))
        # As many tasks as threads have work for, not one per image: a future costs 30 us.
        per_task = max(1, -(-len(ids) // (4 * self._threads)))
        alone = self._alone.tolist()
        tasks = [
            self._pool.submit(self._decode, epoch, ids[part], alone[part], images[part])
            for part in (slice(at, at + per_task) for at in range(0, len(ids), per_task))
        ]
        return _Pending(epoch, index, images, tasks)

    def _decode(self, epoch: int, ids: list[int], alone: list[bool], images: Tensor) -> list[_Row]:
        rows = self._decode_rows(epoch, ids, alone, images)
        good = [at for at, row in enumerate(rows) if row.key and row.error is None]
        if self._transform is not None and self._transform_path is not None and good:
            chosen = images[good]
            seeds = [sample_draw(self.order.seed, epoch, rows[at].key) for at in good]
            apply_transform(self._transform, self._transform_path, chosen, seeds)
            images[good] = chosen
        return rows

    def _decode_rows(
        self, epoch: int, ids: list[int], alone: list[bool], images: Tensor
    ) -> list[_Row]:
        rows = []
        for sample, by_itself, image in zip(ids, alone, images, strict=True):
            if sample == PADDED:
                image.zero_()
                rows.append(_Row("", {}, None))
                continue
            if self._decoded is not None and self._load_decoded(sample, epoch, image, rows):
                continue
            started = time.perf_counter()
            raw: RawSample = self._reader.read(sample, alone=by_itself)
            fetched = time.perf_counter()
            error = None
            try:
                draw = sample_draw(self.order.seed, epoch, raw.key)
                data = self._checked(sample, raw)
                if self._decoded is None:
                    preprocess_into(image, data, self.preprocess, flip=self._flip, draw=draw)
                else:
                    preprocess_into(image, data, self.preprocess)
                    self._decoded.keep(sample, image.numpy())
                    self._mirror(image, draw)
            except SampleError as bad:
                image.zero_()
                error = bad.reason
            took = time.perf_counter() - fetched
            rows.append(_Row(raw.key, raw.columns, error, fetched - started, took))
        return rows

    def _load_decoded(self, sample: int, epoch: int, image: Tensor, rows: list[_Row]) -> bool:
        """Whether the pixels were kept in an earlier epoch; then no byte of the shard is read."""
        assert self._decoded is not None, "there is a cache"
        if not self._decoded.load(sample, image.numpy()):
            return False
        key = self._reader.key(sample)
        self._mirror(image, sample_draw(self.order.seed, epoch, key))
        rows.append(_Row(key, {}, None))
        return True

    def _mirror(self, image: Tensor, draw: int) -> None:
        if self._flip and is_mirrored(draw):
            image.copy_(image.flip(2))

    def _checked(self, sample: int, raw: RawSample) -> bytes:
        """The image's bytes; what was damaged on the way is fetched once more, by itself."""
        try:
            return raw.checked_image()
        except SampleError:
            return self._reader.read(sample, alone=True).checked_image()

    def _result(self, task: "Future[list[_Row]]", index: int) -> list[_Row]:
        try:
            return task.result(timeout=self._stall_seconds)
        except FutureTimeoutError:
            raise DatasetError(
                f"batch {index}: no sample for {self._stall_seconds:.0f} s. Being read:\n"
                f"{self._reader.reading()}\nThreads, and where they are:\n"
                f"{describe_threads('fetch', 'decode')}\n{len(self._waiting)} batches are queued. "
                "Look at the storage named above, or raise --stall-seconds."
            ) from None

    def _collect(self, pending: "_Pending") -> Batch:
        rows = [row for task in pending.tasks for row in self._result(task, pending.index)]
        errors = {row.key: row.error for row in rows if row.error is not None}
        self.stats.samples += sum(row.key != "" for row in rows)
        self.stats.fetch_seconds += sum(row.fetch_seconds for row in rows)
        self.stats.decode_seconds += sum(row.decode_seconds for row in rows)
        self.stats.bytes_fetched = self._reader.fetched_bytes
        self.stats.requests = self._reader.requests
        self.stats.queued_batches = sum(
            all(task.done() for task in queued.tasks) for queued in self._waiting
        )
        caches = [cache for cache in (self._chunks, self._decoded) if cache is not None]
        self.stats.cache_hits = sum(cache.hits for cache in caches)
        self.stats.cache_misses = sum(cache.misses for cache in caches)
        self.stats.bad.update(errors.values())
        room = MAX_LISTED - len(self.stats.bad_samples)
        self.stats.bad_samples += list(errors.items())[:room]
        return Batch(
            images=pending.images,
            keys=[row.key for row in rows],
            valid=torch.tensor([row.key != "" and row.error is None for row in rows]),
            columns={n: [row.columns.get(n) for row in rows] for n in self._columns},
            epoch=pending.epoch,
            index=pending.index,
            slots=self.slots,
            errors=errors,
        )


@dataclass(frozen=True)
class _Pending:
    epoch: int
    index: int
    images: Tensor
    tasks: list["Future[list[_Row]]"]
