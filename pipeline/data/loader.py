"""The loader: exact batches at full speed, from threads into preallocated tensors."""

import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Never

import torch

from pipeline import storage
from pipeline.background import describe_threads
from pipeline.config import Crop, LoaderConfig, PreprocessConfig, Tail
from pipeline.config.command_line import refuse_others
from pipeline.data.batch import Batch
from pipeline.data.cache import ChunkCache, DecodedCache
from pipeline.data.dataset import Dataset
from pipeline.data.fetch import LARGE_BYTES, FetchAhead, SampleReader
from pipeline.data.layout import alone_slots, local_ranks, plan_order
from pipeline.data.order import Order, slots_of
from pipeline.data.preprocess import Augmentation
from pipeline.data.sample_decoder import DecodeThreads, DecodingBatch, Row, SampleDecoder
from pipeline.errors import ConfigError, DatasetError
from pipeline.json_value import Json, JsonValue
from pipeline.machine import Need, free_memory_bytes, refuse_beyond_memory

MAX_LISTED = 1000
"""Bad samples that are kept by name, some 100 KB of a state; all are counted."""


PREFETCH_BATCHES = 4
"""Decoded batches kept ready per rank: a slow object or two then never stops the step."""
_SETTINGS = LoaderConfig()


@dataclass(frozen=True)
class LoaderTotals:
    """What a rank has done up to a moment; `bad` and `retries` are counts by reason."""

    samples: int = 0
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes_fetched: int = 0
    bad: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    cache_hits: int = 0
    cache_misses: int = 0
    queued_batches: int = 0


@dataclass
class LoaderStats:
    """What a rank has done so far; the threads' own seconds of reading and decoding added up."""

    samples: int = 0
    bytes_fetched: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    bad_samples: list[tuple[str, str]] = field(default_factory=list)
    fetch_seconds: float = 0.0
    decode_seconds: float = 0.0
    queued_batches: int = 0
    cache_hits: int = 0
    cache_misses: int = 0

    def count(self, rows: list[Row]) -> dict[str, str]:
        """Adds a batch; the reasons of its bad samples by key."""
        errors = {row.key: row.error for row in rows if row.error is not None}
        self.samples += sum(row.key != "" for row in rows)
        self.fetch_seconds += sum(row.fetch_seconds for row in rows)
        self.decode_seconds += sum(row.decode_seconds for row in rows)
        self.bad.update(errors.values())
        room = MAX_LISTED - len(self.bad_samples)
        self.bad_samples += list(errors.items())[:room]
        return errors

    def totals(self) -> LoaderTotals:
        """The numbers as they are now; `retries` are the process's."""
        return LoaderTotals(
            samples=self.samples,
            fetch_seconds=self.fetch_seconds,
            decode_seconds=self.decode_seconds,
            bytes_fetched=self.bytes_fetched,
            bad=dict(self.bad),
            retries=dict(storage.retry_counts()),
            cache_hits=self.cache_hits,
            cache_misses=self.cache_misses,
            queued_batches=self.queued_batches,
        )


@dataclass(frozen=True)
class LoaderState:
    """What `Loader.state_dict` holds: where in which order a reader stands."""

    dataset_digest: str
    order: Order
    flip: bool
    transform: str | None
    epoch: int
    batches: int

    @staticmethod
    def from_json(values: Json) -> "LoaderState":
        """From what `state_dict` gave."""
        stated: Any = values
        return LoaderState(
            stated["dataset_digest"], Order(**stated["order"]), stated["flip"],
            stated.get("transform"), epoch=stated["epoch"], batches=stated["batches"],
        )  # fmt: skip


def _checked(dataset: Dataset, columns: Sequence[str]) -> Dataset:
    """What Python's users give in place of a dataset and of a list of columns, refused by name."""
    if not isinstance(dataset, Dataset):
        raise storage.not_opened(dataset, Dataset, "Loader")
    if isinstance(columns, str):
        raise ConfigError(f"Loader: columns is a list of names: `columns=[{columns!r}]`")
    return dataset


class Loader:
    """One epoch per iteration; each iteration after it is the next epoch.

    Rank r of `world_size` gets its slots of every global batch. The sequence of global batches
    follows from the dataset, `seed` and `global_batch_size` alone. Leaving an iteration, also by
    `next(iter(loader))`, and iterating again goes on with the next batch: what was looked at is not
    in the rest of that epoch. To look first, take another loader or `dataset[0:8]`.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocess: PreprocessConfig | None = None,
        *,
        global_batch_size: int,
        image_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        tail: Tail = "pad",
        threads: int | None = None,
        channels: Literal[1, 3] = 3,
        crop: Crop = "center",
        flip: bool = False,
        transform: str | None = None,
        columns: Sequence[str] = (),
        settings: LoaderConfig = _SETTINGS,
        stall_seconds: float = 300.0,
        **others: Never,
    ) -> None:
        """The images as `preprocess` says, or in short as `image_size`, `channels` and `crop` do.

        `threads` go before those of `settings`. Raises `ConfigError` for both forms together, for
        what is no dataset, for another argument, and for batches that find no room in the memory.
        """
        refuse_others(Loader, others)
        self.dataset = _checked(dataset, columns)
        dataset.column_kinds(columns)  # one that no sample has would be None throughout
        self.preprocess = _preprocess_of(preprocess, image_size, channels, crop)
        self.slots = slots_of(rank, world_size, global_batch_size)
        self.stats = LoaderStats()
        self.epoch = 0
        self._augmentation, self._columns = Augmentation(flip, transform), tuple(columns)
        self._next_batch = 0
        self._started = False
        self._settings, self._stall_seconds = settings, stall_seconds
        self._open_caches(Path(settings.cache_folder) if settings.cache_folder else None)
        cores = len(os.sched_getaffinity(0)) // local_ranks(world_size)
        self._num_threads = threads or settings.threads or max(1, cores)
        self._waiting: deque[DecodingBatch] = deque()
        order = plan_order(
            dataset, global_batch_size, seed, settings.memory_bytes, shuffle=shuffle, tail=tail
        )
        needs = reader_needs(dataset, self.preprocess, len(self.slots), settings)
        refuse_beyond_memory(needs, free_memory_bytes())
        self._alone = alone_slots(order, self.slots, world_size)
        self._follow(order)

    def _open_caches(self, folder: Path | None) -> None:
        self._chunks: ChunkCache | None = None
        self._decoded: DecodedCache | None = None
        if folder is not None:
            self._chunks = ChunkCache(folder, self._settings.cache_bytes)
            # A random crop is another image in each epoch, and columns lie beside the bytes.
            varies = self.preprocess.crop == "random" or bool(self._columns)
            if self._settings.cache_decoded and not varies:
                self._decoded = DecodedCache(folder, self.dataset, self.preprocess)

    def _follow(self, order: Order) -> None:
        """Reads in this order from now on; nothing has been read yet."""
        self.order = order
        self._reader = SampleReader(
            self.dataset, order.chunk, self._settings.memory_bytes, self._columns, self._chunks
        )
        decoder = SampleDecoder(
            self._reader,
            self.preprocess,
            self._augmentation,
            seed=order.seed,
            decoded=self._decoded,
        )
        self._threads = DecodeThreads(decoder, self._num_threads)
        self._ahead = FetchAhead(self._reader, order, self.slots, self._alone, decoder.is_kept)

    @property
    def steps_per_epoch(self) -> int:
        """Batches per epoch, the same on every rank."""
        return self.order.steps

    @property
    def memory_bound_bytes(self) -> int:
        """The most bytes of encoded samples and decoded batches that this rank keeps."""
        size = self.preprocess.image_size
        batch = len(self.slots) * self.preprocess.channels * size * size
        return self._settings.memory_bytes + (PREFETCH_BATCHES + 1) * batch

    def __len__(self) -> int:
        """Batches per epoch, as `steps_per_epoch`."""
        return self.steps_per_epoch

    def __repr__(self) -> str:
        preprocess = self.preprocess
        return (
            f"Loader of {self.steps_per_epoch:,} batches an epoch, {len(self.slots)} of "
            f"{self.order.batch_size} images each, {preprocess.channels} x "
            f"{preprocess.image_size} x {preprocess.image_size}; at epoch {self.epoch}, batch "
            f"{self._next_batch}"
        )

    def __iter__(self) -> Iterator[Batch]:
        self._started = True
        epoch = self.epoch
        while self.epoch == epoch:
            self._fill_queue()
            if not self._waiting:
                return
            # It leaves the queue when it is whole: an interrupt or an error here loses no batch.
            batch = self._collect(self._waiting[0])
            self._waiting.popleft()
            self._next_batch = batch.index + 1
            if self._next_batch == self.order.steps:
                self.epoch, self._next_batch = epoch + 1, 0
            yield batch

    def _fill_queue(self) -> None:
        """Keeps `PREFETCH_BATCHES` batches in work, into the next epoch too: no thread rests.

        What is read in order is read once (evaluation), so then nothing is begun after the end.
        """
        steps, prefetch = self.order.steps, PREFETCH_BATCHES
        while steps and len(self._waiting) < prefetch:
            ahead = self._next_batch + len(self._waiting)
            if ahead >= steps and not self.order.shuffle:
                return
            epoch, index = self.epoch + ahead // steps, ahead % steps
            ids = self.order.batch(epoch, index, self.slots).tolist()
            self._waiting.append(self._threads.submit(epoch, index, ids, self._alone.tolist()))
        if not self._reader.is_local:
            queued = self.epoch * steps + self._next_batch + len(self._waiting)
            self._ahead.begin(self.epoch, queued, prefetch)

    def _state(self) -> "LoaderState":
        augmentation = self._augmentation
        return LoaderState(
            self.dataset.digest, self.order, augmentation.flip, augmentation.transform,
            epoch=self.epoch, batches=self._next_batch,
        )  # fmt: skip

    def state_dict(self) -> dict[str, JsonValue]:
        """Every argument of the order, and the batches consumed: the same on all ranks."""
        state = self._state()
        return {**vars(state), "order": state.order.to_json()}

    def load_state_dict(self, state: Json) -> None:
        """Goes on where `state` was taken, at any world size.

        Raises `DatasetError` after iteration began, or if the state is of another order.
        """
        if self._started:
            raise DatasetError("load_state_dict: this loader has begun to read; load before that.")
        taken = LoaderState.from_json(state)
        _refuse_another_order(taken, self._state())
        self.close()
        self._follow(taken.order)
        done, self._next_batch = divmod(taken.batches, max(1, self.order.steps))
        self.epoch = taken.epoch + done

    def close(self) -> None:
        """Ends the threads; work under way is finished first."""
        self._reader.close()
        self._ahead.close()
        self._threads.close()

    def _collect(self, pending: DecodingBatch) -> Batch:
        try:
            rows = pending.rows(self._stall_seconds)
        except TimeoutError:
            raise DatasetError(
                f"batch {pending.index}: no sample for {self._stall_seconds:.0f} s: "
                f"{len(self._waiting)} are queued. Look at the storage named below, or raise "
                "`--stall-seconds`. Being read, and where the threads are:",
                below=[*self._reader.transfers.describe(), *describe_threads("fetch", "decode")],
            ) from None
        errors = self.stats.count(rows)
        self.stats.bytes_fetched = self._reader.transfers.bytes
        self.stats.queued_batches = sum(queued.is_ready for queued in self._waiting)
        caches = [cache for cache in (self._chunks, self._decoded) if cache is not None]
        self.stats.cache_hits = sum(cache.hits for cache in caches)
        self.stats.cache_misses = sum(cache.misses for cache in caches)
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


def reader_needs(
    dataset: Dataset, preprocess: PreprocessConfig, images: int, settings: LoaderConfig
) -> tuple[Need, Need]:
    """What a rank's loader keeps when it reads `images` images of each batch, in bytes."""
    size, channels = preprocess.image_size, preprocess.channels
    batches = PREFETCH_BATCHES + 1
    encoded = min(settings.memory_bytes, whole := sum(shard.bytes for shard in dataset.shards))
    if storage.local_path(dataset.url) is not None and whole >= LARGE_BYTES * len(dataset):
        encoded = 0  # Each is read from its file by itself.
    return (
        Need(
            f"{batches} batches of {images:,} images of {channels} x {size} x {size}",
            batches * images * channels * size * size,
            "fewer images per batch, or a smaller `--image-size N`",
        ),
        Need("encoded samples", encoded, "a smaller `--loader.memory-bytes N`"),
    )


def _preprocess_of(
    preprocess: PreprocessConfig | None,
    image_size: int | None,
    channels: Literal[1, 3],
    crop: Crop,
) -> PreprocessConfig:
    if preprocess is None:
        if image_size is None:
            raise ConfigError("Loader: how large are the images? Give image_size, or preprocess.")
        return PreprocessConfig(image_size=image_size, channels=channels, crop=crop)
    if image_size is not None or (channels, crop) != (3, "center"):
        raise ConfigError(
            "Loader: preprocess says what the images are like; leave out image_size, channels "
            "and crop."
        )
    return preprocess


def _refuse_another_order(state: LoaderState, mine: LoaderState) -> None:
    order = mine.order.to_json()
    differing = [
        f"{name}: the state has {theirs!r}, this loader {ours!r}"
        for name, theirs, ours in [
            ("dataset_digest", state.dataset_digest, mine.dataset_digest),
            ("flip", state.flip, mine.flip),
            ("transform", state.transform, mine.transform),
            *((name, value, order[name]) for name, value in state.order.to_json().items()),
        ]
        # Chunk and window were chosen once, at the run's start, and stay.
        if theirs != ours and name not in ("chunk", "window")
    ]
    if differing:
        raise DatasetError("load_state_dict: another order of samples: " + "; ".join(differing))
