"""What a reader keeps in memory: indexes and chunks, each fetched once, and images in decoding."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from pipeline.data.manifest import ShardRecord
from pipeline.data.shard_index import ShardIndex
from pipeline.errors import DatasetError, PipelineError, SampleError, ShortageError

Filled = TypeVar("Filled")
Made = TypeVar("Made")

INDEX_SAMPLES = 2_000_000
"""Samples whose index entries are kept in memory by one reader: about 450 MB (measured)."""

IMAGE_BYTES = 512 * 2**20
"""Memory that decoding one image may take: a JPEG of the pixel limit does, turned by its EXIF."""


class DecodingMemory:
    """What images in decoding take, all threads of this process together: `limit_bytes` at most.

    Half a gigabyte is the loader's own budget, and four threads would take four times as much.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._held_bytes = limit_bytes, 0
        self._change = threading.Condition()

    @contextmanager
    def taken(self, needed: int) -> Iterator[None]:
        """Waits until there is room for `needed` bytes; what needs more than all, is alone."""
        with self._change:
            while self._held_bytes and self._held_bytes + needed > self._limit_bytes:
                self._change.wait()
            self._held_bytes += needed
        try:
            yield
        finally:
            with self._change:
                self._held_bytes -= needed
                self._change.notify_all()


DECODING = DecodingMemory(IMAGE_BYTES)


_MOST_BYTES = 27
"""Of a pixel with alpha: four RGBA copies of 4 bytes, RGB in 4, the array in 3, with spare."""
_MORE_BYTES = {"WEBP": 8, "GIF": 8, "AVIF": 16, "JPEG2000": 16}
"""Of a pixel, in the decoder's own buffers."""
_ROW_BYTES = 48
"""Pillow keeps a pointer and pads each row, in up to three images at once."""


def decoding_bytes(image: Image.Image) -> int:
    """What decoding an image that Pillow has opened holds at once: by format and rows, too."""
    alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    per_pixel = _MOST_BYTES if alpha else 12
    per_pixel += _MORE_BYTES.get(image.format or "", 0) + 4 * image.mode.startswith("I")
    per_pixel += 8 * bool(image.info.get("progressive"))
    return image.width * image.height * per_pixel + image.height * _ROW_BYTES


def twice(make: Callable[[], Made]) -> Made:
    """Once more where memory ran out and is there again: only then the file is to blame."""
    try:
        return make()
    except MemoryError:
        if _is_short():
            raise ShortageError(SHORT) from None
        return make()


SHORT = (
    "memory ran out while an image was decoded, which says nothing about the image. Use fewer "
    "workers or threads, or give more memory, and run the same command again."
)


def _is_short() -> bool:
    """Whether an image's share of memory can't be had; else the file asked for the impossible."""
    try:
        np.empty(IMAGE_BYTES, np.uint8)
    except MemoryError:
        return True
    return False


def check_decoding(what: str, needed: int, pixel_limit: int) -> None:
    """Refuses an image that takes more than one may, before a pixel of it is decoded."""
    budget = max(IMAGE_BYTES, 6 * pixel_limit)
    if needed > budget:
        raise SampleError(
            "bomb",
            f"a {what} takes about {needed / 2**20:,.0f} MiB to decode, over {budget / 2**20:,.0f}",
        )


class IndexMemory:
    """Shards' indexes, the most recently used ones: at most `INDEX_SAMPLES` samples of them."""

    def __init__(self, shards: Sequence[ShardRecord], read: Callable[[int], ShardIndex]) -> None:
        self._shards, self._read = shards, read
        self._lock = threading.Lock()
        self._indexes: OrderedDict[int, Future[ShardIndex]] = OrderedDict()

    def get(self, shard: int) -> ShardIndex:
        """A shard's index, read once and kept while there is room."""
        with self._lock:
            found = self._indexes.get(shard)
            if found is None or _has_failed(found):
                found = None
                mine: Future[ShardIndex] = Future()
                self._indexes[shard] = mine
                self._forget()
            else:
                self._indexes.move_to_end(shard)
        if found is not None:
            return found.result()
        return fill(mine, lambda: self._read(shard))

    def _forget(self) -> None:
        held = sum(self._shards[shard].samples for shard in self._indexes)
        while held > INDEX_SAMPLES and len(self._indexes) > 1:
            shard, _ = self._indexes.popitem(last=False)
            held -= self._shards[shard].samples


@dataclass(frozen=True)
class Chunk:
    """A shard's bytes from `begin` on, which hold its samples from position `first` on.

    `rows` are those samples' part of the index. The whole index may be forgotten meanwhile: one
    rank reads a thousand shards at a time, and read anew for each sample, their indexes would cost
    a hundred times the images.
    """

    data: bytes
    begin: int
    rows: ShardIndex
    first: int


@dataclass
class _Kept:
    chunk: "Future[Chunk]"
    length: int
    reads: int = 0


class ChunkMemory:
    """Chunks by shard and number, fetched or on their way: at most `limit_bytes` of them.

    Those that were all read are forgotten first, then the least recently used.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._chunks: OrderedDict[tuple[int, int], _Kept] = OrderedDict()
        self._held_bytes = 0

    def find(self, key: tuple[int, int]) -> "Future[Chunk] | None":
        """A chunk that is kept or on its way; not one whose fetch has failed."""
        with self._lock:
            kept = self._chunks.get(key)
            if kept is None or _has_failed(kept.chunk):
                return None
            self._chunks.move_to_end(key)
            return kept.chunk

    def claim(self, key: tuple[int, int], length: int) -> "Future[Chunk] | None":
        """A future for the caller to fill; None when somebody else has it in hand."""
        with self._lock:
            there = self._chunks.get(key)
            if there is not None and not _has_failed(there.chunk):
                return None
            if there is not None:
                del self._chunks[key]
                self._held_bytes -= there.length
            mine: Future[Chunk] = Future()
            self._chunks[key] = _Kept(mine, length)
            self._held_bytes += length
            self._forget()
            return mine

    def count_read(self, key: tuple[int, int], samples: int) -> None:
        """A chunk all of whose `samples` were read is the first to be forgotten, not the last.

        It is the newest one, but those that were fetched ahead are needed sooner.
        """
        with self._lock:
            kept = self._chunks.get(key)
            if kept is not None:
                kept.reads += 1
                if kept.reads % samples == 0:
                    self._chunks.move_to_end(key, last=False)

    def _forget(self) -> None:
        """Called with the lock held; the newest chunk always stays."""
        while self._held_bytes > self._limit_bytes and len(self._chunks) > 1:
            _, kept = self._chunks.popitem(last=False)
            self._held_bytes -= kept.length


def fill(future: "Future[Filled]", make: Callable[[], Filled]) -> Filled:
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
