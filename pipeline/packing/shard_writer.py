"""One shard: a plain WebDataset tar, the same bytes for the same samples, and its index.

Written header by header with what `tarfile` makes of a member, so that offsets, checksums and the
index come from the one pass; the bytes are those of webdataset's own TarWriter (a test compares).
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.data.column_types import note_columns
from pipeline.data.shard_index import ShardIndex
from pipeline.json_value import Json

BLOCK = tarfile.BLOCKSIZE
_PIECE_BYTES = 4 * 2**20
"""Handed at once to the thread that hashes and writes: a thread's call costs as much as 100 KB."""
_MOST_BUFFERS = 1000
"""Of one `writev`: Linux takes 1,024."""
_SYNC_BYTES = 32 * 2**20
"""A shard of 256 MiB synced at its end alone cost a quarter of its packing (measured)."""
SIDECARS = ("json", "cls", "txt")
_json_of = json.JSONEncoder(sort_keys=True).encode
"""`json.dumps` makes an encoder for each call."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a member's bytes lie in a tar, and their CRC-32; a size of -1: there are none."""

    offset: int
    size: int
    crc32: int


_NOWHERE = Extent(0, -1, 0)


@dataclass(frozen=True, slots=True)
class IndexRow:
    """What the index says of one sample; width and height in pixels, `beside` by extension."""

    key: str
    extension: str
    start: int
    end: int
    image: Extent
    width: int = 0
    height: int = 0
    beside: Mapping[str, Extent] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """What goes into a shard: image bytes, size in pixels, and what lies beside it."""

    key: str
    extension: str
    image: bytes
    width: int
    height: int
    metadata: Json
    class_number: int | None = None
    text: str | None = None
    crc32: int | None = None
    """The image's, where a thread has reckoned it already."""

    def members(self) -> list[tuple[str, bytes]]:
        """Extensions and bytes in the order of extensions, as webdataset writes them."""
        members = [(self.extension, self.image)]
        if self.metadata:
            members.append(("json", _json_of(self.metadata).encode()))
        if self.class_number is not None:
            members.append(("cls", str(self.class_number).encode()))
        if self.text is not None:
            members.append(("txt", self.text.encode()))
        return sorted(members)


class ShardWriter:
    """Writes samples to a tar at `path`; after the `with` block: `sha256`, `bytes`, `index`.

    A thread of its own hashes and writes, a piece after the other.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        """`durable`: what is written goes to the disk meanwhile, not all of it at the end."""
        self._file = path.open("wb", buffering=0)
        self._durable = durable
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="shard")
        self._storing: Future[None] | None = None
        self._syncing: Future[None] | None = None
        self._unsynced = 0
        self._parts: list[bytes] = []
        self._stored = 0
        """Bytes that were handed to the thread."""
        self._hash = hashlib.sha256()
        self.rows: list[IndexRow] = []
        self.columns: dict[str, str] = {}
        self.bytes = 0

    def write(self, sample: Sample) -> None:
        """Appends one sample."""
        start, image = self.bytes, _NOWHERE
        beside: dict[str, Extent] = {}
        for extension, data in sample.members():
            size = len(data)
            self._put(header(f"{sample.key}.{extension}", size))
            if extension in SIDECARS:
                beside[extension] = Extent(self.bytes, size, zlib.crc32(data))
            else:
                crc32 = zlib.crc32(data) if sample.crc32 is None else sample.crc32
                image = Extent(self.bytes, size, crc32)
            self._put(data)
            self._put(_PADDING[-size % BLOCK])
        self.rows.append(
            IndexRow(
                sample.key, sample.extension, start, self.bytes, image,
                width=sample.width, height=sample.height, beside=beside,
            )
        )  # fmt: skip
        note_columns(self.columns, sample.metadata)
        if self.bytes - self._stored >= _PIECE_BYTES:
            self._hand_over()

    def _put(self, data: bytes) -> None:
        self._parts.append(data)
        self.bytes += len(data)

    def _hand_over(self) -> None:
        """Two pieces are in memory at most: this waits for the one before, and raises its error."""
        parts, self._parts, self._stored = self._parts, [], self.bytes
        if self._storing is not None:
            self._storing.result()
        self._storing = self._threads.submit(self._store, parts)

    def _store(self, parts: list[bytes]) -> None:
        for first in range(0, len(parts), _MOST_BUFFERS):
            some = parts[first : first + _MOST_BUFFERS]
            for part in some:
                self._hash.update(part)
            left = sum(map(len, some)) - os.writev(self._file.fileno(), some)
            if left:  # a signal, or a disk that is nearly full
                rest = memoryview(b"".join(some))[-left:]
                while rest:
                    rest = rest[os.write(self._file.fileno(), rest) :]
        self._unsynced += sum(map(len, parts))
        if self._durable and self._unsynced >= _SYNC_BYTES:
            if self._syncing is not None:
                self._syncing.result()
            self._syncing = self._threads.submit(os.fdatasync, self._file.fileno())
            self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                end = self.bytes + 2 * BLOCK
                self._put(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
                self._hand_over()
                assert self._storing is not None, "handed over just now"
                self._storing.result()
                if self._syncing is not None:
                    self._syncing.result()  # raises what the disk said
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file as it is; after a whole `with` block it is closed already."""
        self._threads.shutdown(wait=True)
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def index(self) -> ShardIndex:
        """Where each sample lies."""
        return index_of(self.rows, self.columns)


_PADDING = [bytes(size) for size in range(BLOCK)]


def header(name: str, size: int) -> bytes:
    """A member's header as `tarfile` makes it; a plain one from a form, in a tenth of the time."""
    plain = name.encode()
    if len(plain) > _NAME_BYTES or not name.isascii() or size >= _PLAIN_SIZE:
        return _tarfile_header(name, size)
    digits = b"%011o" % size
    checksum = _FORM_SUM + sum(plain) + sum(digits)
    return b"".join(
        (plain, bytes(_NAME_BYTES - len(plain)), _FORM[100:124], digits, _FORM[135:148],
         b"%06o\0 " % checksum, _FORM[156:])
    )  # fmt: skip


def _tarfile_header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, 0, 0o444
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


# POSIX ustar: name 0..100, size 124..135, checksum 148..156, which counts itself as blanks.
_NAME_BYTES, _PLAIN_SIZE = 100, 8**11
_FORM = _tarfile_header("", 0)
_FORM_SUM = sum(_FORM) - sum(_FORM[124:135]) - sum(_FORM[148:156]) + 8 * ord(" ")


def index_of(rows: Sequence[IndexRow], columns: Mapping[str, str]) -> ShardIndex:
    """Columns from rows."""
    beside: dict[str, npt.NDArray[Any]] = {}
    for extension in SIDECARS:
        found = [row.beside.get(extension, _NOWHERE) for row in rows]
        beside[f"{extension}_offsets"] = _array((each.offset for each in found), np.int64)
        beside[f"{extension}_sizes"] = _array((each.size for each in found), np.int64)
        beside[f"{extension}_crc32"] = _array((each.crc32 for each in found), np.uint32)
    return ShardIndex(
        keys=[row.key for row in rows],
        extensions=[row.extension for row in rows],
        starts=_array((row.start for row in rows), np.int64),
        ends=_array((row.end for row in rows), np.int64),
        offsets=_array((row.image.offset for row in rows), np.int64),
        sizes=_array((row.image.size for row in rows), np.int64),
        widths=_array((row.width for row in rows), np.int32),
        heights=_array((row.height for row in rows), np.int32),
        crc32=_array((row.image.crc32 for row in rows), np.uint32),
        **beside,
        columns=columns,
    )


def _array(values: Iterable[int], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.fromiter(values, dtype=kind)
