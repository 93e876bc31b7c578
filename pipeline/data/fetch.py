"""Bytes of samples: single reads of local shards, one ranged GET per chunk from object storage."""

import json
import sys
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

from pipeline import storage
from pipeline.data.cache import ChunkCache
from pipeline.data.dataset import Dataset
from pipeline.data.preprocess import crc_matches
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import DatasetError, PipelineError, SampleError

Filled = TypeVar("Filled")

LARGE_BYTES = 32 * 1024
"""From here on a sample of a local shard is read by itself; smaller ones come with their chunk."""

INDEX_SAMPLES = 2_000_000
"""Samples whose index entries are kept in memory by one reader: about 450 MB (measured)."""


@dataclass(frozen=True)
class Place:
    """Where a live sample is: shard number and position in the tar."""

    shard: int
    position: int


@dataclass(frozen=True)
class RawSample:
    """A sample's undecoded bytes, whose checksum is not yet checked, and the columns beside it."""

    key: str
    image: bytes
    crc32: int
    columns: dict[str, Any]
    fault: SampleError | None = None
    """What is wrong with it as it lies in the shard; there is no image then."""

    def checked_image(self) -> bytes:
        """The image's bytes; raises `SampleError` if they are not those that were packed."""
        if self.fault is not None:
            raise self.fault
        if not crc_matches(self.image, self.crc32):
            raise SampleError("checksum", f"{self.key}: its bytes are not those that were packed")
        return self.image


@dataclass(frozen=True)
class _Fetched:
    """A chunk: a shard's bytes from `begin` on, which hold its samples from position `first` on.

    `rows` are those samples' part of the index. The whole index may be forgotten meanwhile: one
    rank reads a thousand shards at a time, and read anew for each sample, their indexes would cost
    a hundred times the images.
    """

    data: bytes
    begin: int
    rows: ShardIndex
    first: int


@dataclass
class _Chunk:
    fetched: "Future[_Fetched]"
    length: int
    reads: int = 0


class SampleReader:
    """Reads samples by their live id, from any thread.

    `chunk` consecutive samples are fetched together from object storage and kept within
    `memory_bytes`; those that were all read are forgotten first, then the least recently used.
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
        # Of each removed position: how many live samples stand before it in its shard.
        self._live_before: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, Future[ShardIndex]] = OrderedDict()
        self._chunks: OrderedDict[tuple[int, int], _Chunk] = OrderedDict()
        self._memory_bytes = memory_bytes
        self._held_bytes = 0
        self._cache = cache
        self._reading: dict[int, tuple[str, int, int | None, float]] = {}
        self._closed = False
        self.fetched_bytes = 0
        self.requests = 0

    @cached_property  # reading whole shards needs neither of these, and there may be 10^5 of them
    def _first(self) -> list[int]:
        return [0, *accumulate(shard.live for shard in self._dataset.shards)]

    @cached_property
    def is_local(self) -> bool:
        """Whether every shard lies on the local filesystem."""
        beside = not any("://" in shard.path for shard in self._dataset.shards)
        return beside and storage.local_path(self._dataset.url) is not None

    def place(self, sample: int) -> Place:
        """Where the live sample `sample` (0 is the first of the first shard) is."""
        number = bisect_right(self._first, sample) - 1
        live = sample - self._first[number]
        removed = self._dataset.shards[number].removed
        if not removed:
            return Place(number, live)
        before = self._live_before.get(number)
        if before is None:
            before = [position - place for place, position in enumerate(sorted(removed))]
            self._live_before[number] = before
        return Place(number, live + bisect_right(before, live))

    def read(self, sample: int, *, alone: bool = False) -> RawSample:
        """One live sample; `alone` fetches its own bytes only, not its chunk."""
        place = self.place(sample)
        chunk = None if alone else self._chunk_of(place, sample)
        if chunk is not None:
            return self._cut(chunk.rows, place.position - chunk.first, chunk.data, chunk.begin)
        index = self.index(place.shard)
        start, end = self._span(index, place.position)
        url = self._dataset.shard_url(self._dataset.shards[place.shard])
        return self._cut(index, place.position, self._get(url, start, end), start)

    def key(self, sample: int) -> str:
        """A live sample's key, from the index alone."""
        place = self.place(sample)
        return self.index(place.shard).keys[place.position]

    def warm(self, sample: int) -> None:
        """Fetches the chunk that a sample lies in, unless it is there or on its way.

        Shards on the local filesystem need none of it: reading them is as cheap as a look-up.
        """
        place = self.place(sample)
        key = place.shard, sample // self._chunk
        url = self._dataset.shard_url(self._dataset.shards[place.shard])
        if storage.local_path(url) is None and self._there(key) is None:
            length, fetch = self._fetch(place, sample, url)
            mine = self._claim(key, length)
            if mine is not None:
                _fill(mine, fetch)

    def close(self) -> None:
        """Lets every fetch that has not begun fail at once, so that nobody waits for it."""
        self._closed = True

    def read_positions(self, shard: int, first: int, last: int) -> list[RawSample]:
        """The samples at positions [first, last) of a shard, also removed ones, by one read.

        Raises `DatasetError` for a shard that was cut short: what encodes whole shards must not
        note its samples as bad for good.
        """
        index = self.index(shard)
        url = self._dataset.shard_url(self._dataset.shards[shard])
        begin, end = int(index.starts[first]), int(index.ends[last - 1])
        data = self._get(url, begin, end)
        if len(data) != end - begin:
            raise DatasetError(
                f"{storage.shown(url)}: ends at byte {begin + len(data)}, its index says {end} and "
                "more. It was cut short: run `python -m jobs.verify --dataset` on the dataset."
            )
        return [self._cut(index, position, data, begin) for position in range(first, last)]

    def index(self, shard: int) -> ShardIndex:
        """A shard's index, read once and kept while there is room."""
        with self._lock:
            found = self._indexes.get(shard)
            if found is None or _has_failed(found):
                found = None
                mine: Future[ShardIndex] = Future()
                self._indexes[shard] = mine
                self._forget_indexes()
            else:
                self._indexes.move_to_end(shard)
        if found is not None:
            return found.result()
        return _fill(mine, lambda: self._dataset.read_index(shard, self._get))

    def _chunk_of(self, place: Place, sample: int) -> _Fetched | None:
        """The chunk that a sample belongs to; None where that is better read by itself."""
        key = place.shard, sample // self._chunk
        found = self._there(key)
        if found is None:
            url = self._dataset.shard_url(self._dataset.shards[place.shard])
            if storage.local_path(url) is not None:
                start, end = self._span(self.index(place.shard), place.position)
                if end - start >= LARGE_BYTES:
                    return None
            length, fetch = self._fetch(place, sample, url)
            mine = self._claim(key, length)
            if mine is not None:
                chunk = _fill(mine, fetch)
            else:
                found = self._there(key)
                # Forgotten between the two looks: it is fetched again.
                chunk = found.result() if found else fetch()
        else:
            chunk = found.result()
        self._count_read(key, len(chunk.rows))
        return chunk

    def _fetch(self, place: Place, sample: int, url: str) -> tuple[int, Callable[[], _Fetched]]:
        """The length in bytes of the chunk that a sample belongs to, and what fetches it."""
        start = sample - sample % self._chunk
        first = self.place(max(start, self._first[place.shard])).position
        end = min(start + self._chunk, self._first[place.shard + 1])
        rows = self.index(place.shard).part(first, self.place(end - 1).position + 1)
        begin, stop = int(rows.starts[0]), int(rows.ends[-1])

        def fetch() -> _Fetched:
            data = self._get_chunk(url, place.shard, begin, stop)
            return _Fetched(data, begin, rows, first)

        return stop - begin, fetch

    def _there(self, key: tuple[int, int]) -> "Future[_Fetched] | None":
        """A chunk that is kept or on its way; not one whose fetch has failed."""
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is None or _has_failed(chunk.fetched):
                return None
            self._chunks.move_to_end(key)
            return chunk.fetched

    def _claim(self, key: tuple[int, int], length: int) -> "Future[_Fetched] | None":
        """A future for the caller to fill; None when somebody else has it in hand."""
        with self._lock:
            there = self._chunks.get(key)
            if there is not None and not _has_failed(there.fetched):
                return None
            if there is not None:
                del self._chunks[key]
                self._held_bytes -= there.length
            mine: Future[_Fetched] = Future()
            self._chunks[key] = _Chunk(mine, length)
            self._held_bytes += length
            self._forget_chunks()
            return mine

    def _count_read(self, key: tuple[int, int], samples: int) -> None:
        """A chunk all of whose `samples` were read is the first to be forgotten, not the last.

        It is the newest one, but those that were fetched ahead are needed sooner.
        """
        with self._lock:
            chunk = self._chunks.get(key)
            if chunk is not None:
                chunk.reads += 1
                if chunk.reads % samples == 0:
                    self._chunks.move_to_end(key, last=False)

    def reading(self) -> str:
        """Which ranges are being read now and for how long, for an error's text."""
        now = time.monotonic()
        with self._lock:
            under_way = list(self._reading.values())
        lines = [
            f"  {storage.shown(url)} [{start}, {end or 'end'}), for {now - since:.0f} s"
            for url, start, end, since in under_way
        ]
        return "\n".join(lines) or "  nothing is being read"

    def _get_chunk(self, url: str, shard: int, start: int, end: int) -> bytes:
        if self._cache is None or storage.local_path(url) is not None:
            return self._get(url, start, end)
        sha256 = self._dataset.shards[shard].sha256
        return self._cache.read(sha256, start, end, lambda: self._get(url, start, end))

    def _get(self, url: str, start: int = 0, end: int | None = None) -> bytes:
        if self._closed:
            raise DatasetError(f"{storage.shown(url)}: the loader was closed.")
        # Fewer where the shard was cut short: the samples behind the cut are bad, one by one.
        thread = threading.get_ident()
        with self._lock:
            self._reading[thread] = url, start, end, time.monotonic()
        data = b""
        try:
            data = storage.read(url, start, end)
        finally:
            with self._lock:
                del self._reading[thread]
                self.fetched_bytes += len(data)
                self.requests += 1
        return data

    def _span(self, index: ShardIndex, position: int) -> tuple[int, int]:
        """Where a sample begins and ends in its tar; its image alone if no columns are wanted."""
        if self._columns:
            return int(index.starts[position]), int(index.ends[position])
        start = int(index.offsets[position])
        return start, start + int(index.sizes[position])

    def _cut(self, index: ShardIndex, position: int, data: bytes, begin: int) -> RawSample:
        def member(offsets: Any, sizes: Any) -> bytes | None:
            size, offset = int(sizes[position]), int(offsets[position]) - begin
            return None if size < 0 else data[offset : offset + size]

        key, crc32 = index.keys[position], int(index.crc32[position])
        columns: dict[str, Any] = dict.fromkeys(self._columns)
        if self._span(index, position)[1] > begin + len(data):
            fault = SampleError("truncated", f"{key}: its shard was cut short before its end")
            return RawSample(key, b"", crc32, columns, fault)
        if self._columns:
            fields = member(index.json_offsets, index.json_sizes)
            label = member(index.cls_offsets, index.cls_sizes)
            caption = member(index.txt_offsets, index.txt_sizes)
            try:
                found = _columns_of(fields, label, caption, key)
            except SampleError as fault:
                return RawSample(key, b"", crc32, columns, fault)
            columns = {name: found.get(name) for name in self._columns}
        image = member(index.offsets, index.sizes)
        assert image is not None, "only samples with an image are indexed"
        return RawSample(key, image, crc32, columns)

    def _forget_indexes(self) -> None:
        held = sum(self._dataset.shards[shard].samples for shard in self._indexes)
        while held > INDEX_SAMPLES and len(self._indexes) > 1:
            shard, _ = self._indexes.popitem(last=False)
            held -= self._dataset.shards[shard].samples

    def _forget_chunks(self) -> None:
        """Called with the lock held; the newest chunk always stays."""
        while self._held_bytes > self._memory_bytes and len(self._chunks) > 1:
            _, chunk = self._chunks.popitem(last=False)
            self._held_bytes -= chunk.length


def _columns_of(
    fields: bytes | None, label: bytes | None, caption: bytes | None, key: str
) -> dict[str, Any]:
    """The columns in a sample's .json, .cls and .txt; raises `SampleError` where they make none."""
    try:
        found = json.loads(fields) if fields else {}
        if not isinstance(found, dict):
            raise SampleError("annotation", f"{key}.json: holds {str(found)[:100]}, no columns")
        if label is not None:
            found.setdefault("label", label.decode())
        if caption is not None:
            found.setdefault("caption", caption.decode())
    except (ValueError, RecursionError) as error:
        raise SampleError(
            "annotation", f"{key}: what lies beside it can't be read: {error}"
        ) from None
    return found


def _fill(future: "Future[Filled]", make: Callable[[], Filled]) -> Filled:
    """Runs `make` for all who wait for `future`; all of them get its result or its error."""
    try:
        future.set_result(make())
    except PipelineError as error:
        future.set_exception(error)
    finally:
        if not future.done():
            # Nobody may wait for ever, whatever it was that ended this thread's work.
            future.set_exception(DatasetError(f"reading ended with {sys.exc_info()[1]!r}"))
    return future.result()


def _has_failed(future: "Future[Any]") -> bool:
    """Whether it ended in an error: the next who asks tries again."""
    return future.done() and future.exception() is not None
