"""One shard: a plain WebDataset tar, the same bytes for the same samples, and its index.

Written header by header with what `tarfile` makes of a member, so that offsets, checksums and the
index come from the one pass; the bytes are those of webdataset's own TarWriter (a test compares).
"""

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.data.column_types import note_columns
from pipeline.data.shard_index import ShardIndex
from pipeline.json_value import Json

BLOCK = tarfile.BLOCKSIZE
_SYNC_BYTES = 32 * 2**20
"""A shard of 256 MiB synced at its end alone cost a quarter of its packing (measured)."""
SIDECARS = ("json", "cls", "txt")


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

    def members(self) -> list[tuple[str, bytes]]:
        """Extensions and bytes in the order of extensions, as webdataset writes them."""
        members = [(self.extension, self.image)]
        if self.metadata:
            members.append(("json", json.dumps(self.metadata, sort_keys=True).encode()))
        if self.class_number is not None:
            members.append(("cls", str(self.class_number).encode()))
        if self.text is not None:
            members.append(("txt", self.text.encode()))
        return sorted(members)


class ShardWriter:
    """Writes samples to a tar at `path`; after the `with` block: `sha256`, `bytes`, `index`."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        """`durable`: what is written goes to the disk meanwhile, not all of it at the end."""
        self._file = path.open("wb")
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk") if durable else None
        self._syncing: Future[None] | None = None
        self._synced = 0
        self._hash = hashlib.sha256()
        self.rows: list[dict[str, Any]] = []
        self.columns: dict[str, str] = {}
        self.bytes = 0

    def write(self, sample: Sample) -> None:
        """Appends one sample."""
        row: dict[str, Any] = {"keys": sample.key, "starts": self.bytes}
        for extension, data in sample.members():
            self._put(_header(f"{sample.key}.{extension}", len(data)))
            if extension in SIDECARS:
                row |= {f"{extension}_offsets": self.bytes, f"{extension}_sizes": len(data)}
                row[f"{extension}_crc32"] = zlib.crc32(data)
            else:
                row |= {"offsets": self.bytes, "sizes": len(data), "crc32": zlib.crc32(data)}
            self._put(data)
            self._put(bytes(-len(data) % BLOCK))
        row |= {"extensions": sample.extension, "ends": self.bytes}
        row |= {"widths": sample.width, "heights": sample.height}
        self.rows.append(row)
        note_columns(self.columns, sample.metadata)

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.bytes += len(data)
        if self._disk is not None and self.bytes - self._synced >= _SYNC_BYTES:
            if self._syncing is not None:
                self._syncing.result()
            self._file.flush()
            self._syncing = self._disk.submit(os.fdatasync, self._file.fileno())
            self._synced = self.bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind is None:
            end = self.bytes + 2 * BLOCK
            self._put(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
        self.close()

    def close(self) -> None:
        """Closes the file as it is; after a whole `with` block it is closed already."""
        if self._disk is not None:
            self._disk.shutdown(wait=True)
        self._file.close()
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()  # raises what the disk said

    @property
    def sha256(self) -> str:
        """Of the whole file, in hexadecimal."""
        return self._hash.hexdigest()

    @property
    def index(self) -> ShardIndex:
        """Where each sample lies."""
        return index_of(self.rows, self.columns)


def _header(name: str, size: int) -> bytes:
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


def index_of(rows: list[dict[str, Any]], columns: Mapping[str, str]) -> ShardIndex:
    """Columns from rows; a member that a row lacks has size -1."""

    def column(name: str, kind: type[np.generic], missing: int = 0) -> Any:
        return np.array([row.get(name, missing) for row in rows], dtype=kind)

    beside = {
        f"{extension}_{what}": column(f"{extension}_{what}", kind, missing)
        for extension in SIDECARS
        for what, kind, missing in (
            ("offsets", np.int64, 0),
            ("sizes", np.int64, -1),
            ("crc32", np.uint32, 0),
        )
    }
    return ShardIndex(
        keys=[row["keys"] for row in rows],
        extensions=[row["extensions"] for row in rows],
        starts=column("starts", np.int64),
        ends=column("ends", np.int64),
        offsets=column("offsets", np.int64),
        sizes=column("sizes", np.int64),
        widths=column("widths", np.int32),
        heights=column("heights", np.int32),
        crc32=column("crc32", np.uint32),
        **beside,
        columns=columns,
    )
