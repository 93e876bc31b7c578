"""Bytes of samples: single reads of local shards, one ranged GET per chunk from object storage."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipeline import storage
from pipeline.data.cache import ChunkCache
from pipeline.data.dataset import Dataset
from pipeline.data.manifest import Place, Places
from pipeline.data.memory import Chunk, ChunkMemory, IndexMemory, fill
from pipeline.data.order import PADDED, Ids, Order
from pipeline.data.shard_index import RawSample, ShardIndex, cut_sample
from pipeline.errors import DatasetError, ObjectNotFoundError
from pipeline.masking import shell_word

LARGE_BYTES = 32 * 1024
"""From here on a sample of a local shard is read by itself; smaller ones come with their chunk."""
FETCH_THREADS = 8
"""Ranged reads under way at once; they wait for the network, so they cost no core."""
MOST_AHEAD = 16
"""Batches beyond the queued ones whose chunks are fetched already, at most: a chunk is needed by
many batches, so a few ahead hide the slowest request, and more would only hold memory."""
MOST_BEGUN = 65_536
"""Chunks of which it is remembered that their fetch has begun: some MB, and far more than are
under way; one that is forgotten is asked for once more."""


class Transfers:
    """Ranged reads, counted, and each of them named while it is under way."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._lock = threading.Lock()
        self._reading: dict[int, tuple[str, int, int | None, float]] = {}
        self._closed = False
        self.bytes = 0
        self.requests = 0

    def read(self, url: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of an object; fewer where it is shorter."""
        if self._closed:
            raise DatasetError(f"{storage.shown(url)}: the loader was closed.")
        thread = threading.get_ident()
        with self._lock:
            self._reading[thread] = url, start, end, time.monotonic()
        data = b""
        try:
            data = storage.read(url, start, end)
        except ObjectNotFoundError as error:
            raise DatasetError(
                f"{error} It is a shard of {self._dataset}: `python -m jobs.verify --dataset "
                f"{shell_word(self._dataset)}` tells how it is made again."
            ) from None
        finally:
            with self._lock:
                del self._reading[thread]
                self.bytes += len(data)
                self.requests += 1
        return data

    def close(self) -> None:
        """Lets every read that has not begun fail at once, so that nobody waits for it."""
        self._closed = True

    def describe(self) -> list[str]:
        """Which ranges are being read now and for how long, for an error's text."""
        now = time.monotonic()
        with self._lock:
            under_way = list(self._reading.values())
        lines = [
            f"{storage.shown(url)} [{start}, {end or 'end'}), for {now - since:.0f} s"
            for url, start, end, since in under_way
        ]
        return lines or ["nothing is being read"]


class SampleReader:
    """Reads samples by their live id, from any thread.

    `chunk` consecutive samples are fetched together from object storage and kept within
    `memory_bytes`.
    """

    def __init__(
        self,
        dataset: Dataset,
        chunk: int,
        memory_bytes: int,
        columns: Sequence[str],
        cache: ChunkCache | None = None,
    ) -> None:
        self._dataset, self._chunk, self._columns = dataset, chunk, tuple(columns)
        self._cache = cache
        self.places = Places(dataset.shards)
        self.transfers = Transfers(dataset.url)
        self._indexes = IndexMemory(
            dataset.shards, lambda shard: dataset.read_index(shard, self.transfers.read)
        )
        self._chunks = ChunkMemory(memory_bytes)

    @cached_property
    def is_local(self) -> bool:
        """Whether every shard lies on the local filesystem."""
        beside = not any("://" in shard.path for shard in self._dataset.shards)
        return beside and storage.local_path(self._dataset.url) is not None

    def read(self, sample: int, *, alone: bool = False) -> RawSample:
        """One live sample; `alone` fetches its own bytes only, not its chunk."""
        place = self.places.find(sample)
        position = place.position
        chunk = None if alone else self._chunk_of(place, sample)
        if chunk is not None:
            return cut_sample(
                chunk.rows, position - chunk.first, chunk.data, chunk.begin, self._columns
            )
        index = self._indexes.get(place.shard)
        start, end = index.span(position, whole=bool(self._columns))
        data = self.transfers.read(self._url(place.shard), start, end)
        # Fewer bytes where the shard was cut short: the samples behind are bad, one by one.
        return cut_sample(index, position, data, start, self._columns)

    def key(self, sample: int) -> str:
        """A live sample's key, from the index alone."""
        place = self.places.find(sample)
        return self._indexes.get(place.shard).keys[place.position]

    def warm(self, sample: int) -> None:
        """Fetches the chunk that a sample lies in, unless it is there or on its way.

        Shards on the local filesystem need none of it: reading them is as cheap as a look-up.
        """
        place = self.places.find(sample)
        key = place.shard, sample // self._chunk
        if storage.local_path(self._url(place.shard)) is None and self._chunks.find(key) is None:
            length, fetch = self._fetch(place, sample)
            mine = self._chunks.claim(key, length)
            if mine is not None:
                fill(mine, fetch)

    def close(self) -> None:
        """Lets every fetch that has not begun fail at once, so that nobody waits for it."""
        self.transfers.close()

    def read_positions(self, shard: int, first: int, last: int) -> list[RawSample]:
        """The samples at positions [first, last) of a shard, also removed ones, by one read.

        Raises `DatasetError` for a shard that was cut short: what encodes whole shards must not
        note its samples as bad for good.
        """
        index = self._indexes.get(shard)
        begin, end = int(index.starts[first]), int(index.ends[last - 1])
        data = self.transfers.read(self._url(shard), begin, end)
        if len(data) != end - begin:
            raise DatasetError(
                f"{storage.shown(self._url(shard))}: ends at byte {begin + len(data)}, its index "
                f"says {end} and more. It was cut short: run `python -m jobs.verify --dataset` on "
                "the dataset."
            )
        return [
            cut_sample(index, position, data, begin, self._columns)
            for position in range(first, last)
        ]

    def _url(self, shard: int) -> str:
        return self._dataset.shard_url(self._dataset.shards[shard])

    def _chunk_of(self, place: Place, sample: int) -> Chunk | None:
        """The chunk that a sample belongs to; None where that is better read by itself."""
        key = place.shard, sample // self._chunk
        found = self._chunks.find(key)
        if found is None:
            if storage.local_path(self._url(place.shard)) is not None:
                index: ShardIndex = self._indexes.get(place.shard)
                start, end = index.span(place.position, whole=bool(self._columns))
                if end - start >= LARGE_BYTES:
                    return None
            length, fetch = self._fetch(place, sample)
            mine = self._chunks.claim(key, length)
            if mine is not None:
                chunk = fill(mine, fetch)
            else:
                found = self._chunks.find(key)
                # Forgotten between the two looks: it is fetched again.
                chunk = found.result() if found else fetch()
        else:
            chunk = found.result()
        self._chunks.count_read(key, len(chunk.rows))
        return chunk

    def _fetch(self, place: Place, sample: int) -> tuple[int, Callable[[], Chunk]]:
        """The length in bytes of the chunk that a sample belongs to, and what fetches it."""
        ids, shard = self.places.first, place.shard
        start = sample - sample % self._chunk
        first = self.places.find(max(start, ids[shard])).position
        last = self.places.find(min(start + self._chunk, ids[shard + 1]) - 1).position
        rows = self._indexes.get(shard).part(first, last + 1)
        begin, stop = int(rows.starts[0]), int(rows.ends[-1])

        def fetch() -> Chunk:
            return Chunk(self._chunk_bytes(shard, begin, stop), begin, rows, first)

        return stop - begin, fetch

    def _chunk_bytes(self, shard: int, begin: int, stop: int) -> bytes:
        url = self._url(shard)
        if self._cache is None or storage.local_path(url) is not None:
            return self.transfers.read(url, begin, stop)
        sha256 = self._dataset.shards[shard].sha256
        return self._cache.read(sha256, begin, stop, lambda: self.transfers.read(url, begin, stop))


class FetchAhead:
    """Begins to fetch what the batches behind the queued ones need, each chunk once an epoch."""

    def __init__(
        self,
        reader: SampleReader,
        order: Order,
        slots: range,
        alone: npt.NDArray[np.bool_],
        is_kept: Callable[[Ids], npt.NDArray[np.bool_]],
    ) -> None:
        """`alone` are the slots that are read by themselves, `is_kept` says what needs no read."""
        self._reader, self._order, self._slots = reader, order, slots
        self._alone, self._is_kept = alone, is_kept
        self._threads = ThreadPoolExecutor(FETCH_THREADS, thread_name_prefix="fetch")
        self._next = 0
        self._begun: OrderedDict[tuple[int, int], None] = OrderedDict()

    def begin(self, epoch: int, queued: int, prefetch: int) -> None:
        """All batches before number `queued` (over all epochs) are in work; `epoch` is read now.

        As many batches as one window of each lane lasts, the `prefetch` queued ones among them.
        """
        order, steps = self._order, self._order.steps
        window = order.chunk * order.window * order.lanes // order.batch_size
        ahead = max(1, min(MOST_AHEAD, window - prefetch))
        self._next = max(self._next, queued)
        while steps and self._next < queued + ahead:
            of_epoch, index = divmod(self._next, steps)
            if of_epoch > epoch and not order.shuffle:
                return
            self._begin_batch(of_epoch, index)
            self._next += 1

    def _begin_batch(self, epoch: int, index: int) -> None:
        ids = self._order.batch(epoch, index, self._slots)
        ids = ids[(ids != PADDED) & ~self._alone]
        ids = ids[~self._is_kept(ids)]
        chunks, first = np.unique(ids // self._order.chunk, return_index=True)
        for chunk, sample in zip(chunks.tolist(), ids[first].tolist(), strict=True):
            if (epoch, chunk) not in self._begun:
                self._begun[epoch, chunk] = None
                self._threads.submit(self._reader.warm, sample)
        while len(self._begun) > MOST_BEGUN:
            self._begun.popitem(last=False)

    def close(self) -> None:
        """Ends the threads; reads under way are finished first."""
        self._threads.shutdown(wait=True)
