"""Images inside tar and zip archives, compressed tars too: listed, and read one by one.

A compressed tar can't be read from its middle, so it is unpacked once, into this machine's
temporary folder, where all processes of a pack find it; `forget_unpacked` removes it.
"""

import bz2
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import storage
from pipeline.errors import DatasetError, ObjectNotFoundError, SampleError

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
ARCHIVE_SUFFIXES = (".tar", ".zip", *COMPRESSED_SUFFIXES)
BLOCK = tarfile.BLOCKSIZE
_SPARE_BYTES = 2**30
"""Unpacking leaves that much of the disk free: a small archive may claim to hold terabytes."""


@dataclass(frozen=True)
class ArchiveMember:
    """A file in an archive: a tar's by the `offset` of its bytes, a zip's (-1) by its name."""

    name: str
    size: int
    etag: str
    offset: int = -1


def is_archive(url: str) -> bool:
    """By its suffix."""
    return url.lower().endswith(ARCHIVE_SUFFIXES)


def without_suffix(path: str) -> str:
    """`a/b.tar.gz` as `a/b`: the folder that an archive stands for."""
    suffix = next(each for each in ARCHIVE_SUFFIXES if path.lower().endswith(each))
    return path[: -len(suffix)]


def members_of(url: str, etag: str) -> Iterator[ArchiveMember]:
    """All regular files. Raises `DatasetError` for an archive that is not whole."""
    if url.lower().endswith(".zip"):
        for item in _open_zip(url, etag).infolist():
            if not item.is_dir():
                yield ArchiveMember(item.filename, item.file_size, f"crc32:{item.CRC:08x}")
        return
    with _tar_file(url, etag) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        yield ArchiveMember(member.name, member.size, etag, member.offset_data)
                    tar.members = []  # type: ignore[attr-defined]  # it keeps all headers otherwise
                end: int = tar.offset
        except tarfile.TarError as error:
            raise DatasetError(
                f"{storage.shown(url)}: can't be read ({error}). Is it whole?"
            ) from None
        file.seek(end)
        check_tar_end(file.read(2 * BLOCK), end, url)


def check_tar_end(tail: bytes, end: int, url: str) -> None:
    """A tar ends with two blocks of zeros, here at `end`, where its reader found no header.

    Raises `DatasetError`: every reader takes a tar that was cut at a header for a shorter one.
    """
    if tail != bytes(2 * BLOCK):
        raise DatasetError(
            f"{storage.shown(url)}: has no end mark after byte {end:,}: it was cut short at a "
            "member's border, or damaged there. Copy it again."
        )


def read_tar_member(url: str, etag: str, offset: int, size: int) -> bytes:
    """A tar's bytes; as a slice: fewer where it ends before."""
    if _is_compressed(url):
        return os.pread(_unpacked(url, etag).fileno(), size, offset)
    return storage.read(url, offset, offset + size)


def read_zip_member(url: str, member: str, size: int) -> bytes:
    """A zip's member, unpacked. Raises `SampleError` if it can't be had whole."""
    try:
        with _open_zip(url, storage.stat(url).etag or "").open(member) as file:
            data = file.read(size + 1)  # no more than it says: a bomb may lie about its size
    except (KeyError, ObjectNotFoundError) as error:
        raise SampleError("missing", str(error)) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise SampleError("archive", f"{type(error).__name__}: {error}") from None
    if len(data) != size:
        raise SampleError("archive", f"unpacks to more or less than the {size} bytes it states")
    return data


def forget_unpacked() -> None:
    """Removes what this machine has unpacked; who has it open reads on.

    While another pack unpacks, all is left to that one's end.
    """
    _unpacked.cache_clear()
    try:
        handle = os.open(_folder(), os.O_RDONLY)
    except OSError:  # There is none, or it is another user's.
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(_folder(), ignore_errors=True)
    except OSError:  # In use.
        pass
    finally:
        os.close(handle)


@lru_cache(maxsize=4)
def _open_zip(url: str, etag: str) -> zipfile.ZipFile:
    """A zip open for random access; one that changes is opened anew."""
    try:
        return zipfile.ZipFile(io.BufferedReader(storage.StorageFile(url), 2**16))
    except zipfile.BadZipFile as error:
        raise DatasetError(f"{storage.shown(url)}: can't be read ({error}). Is it whole?") from None


def _is_compressed(url: str) -> bool:
    return url.lower().endswith(COMPRESSED_SUFFIXES)


def _tar_file(url: str, etag: str) -> BinaryIO:
    if not _is_compressed(url):
        return io.BufferedReader(storage.StorageFile(url), 2**20)
    file = os.fdopen(os.dup(_unpacked(url, etag).fileno()), "rb")
    file.seek(0)
    return file


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vae-pipeline-unpacked-{os.getuid()}"


def _hold_folder() -> int:
    """A handle on the folder; until it is closed, no other pack's end removes the folder."""
    folder = _folder()
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            if folder.stat().st_uid != os.getuid():
                raise DatasetError(f"{folder}: belongs to another user. Remove it, or set TMPDIR.")
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # Another pack's end removed it just now.
            continue
        fcntl.flock(handle, fcntl.LOCK_SH)
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)


@lru_cache(maxsize=64)
def _unpacked(url: str, etag: str) -> BinaryIO:
    """The plain tar, open; the first process that needs it unpacks, others wait for that one."""
    held = _hold_folder()
    try:
        path = _folder() / f"{hashlib.sha256(f'{url} {etag}'.encode()).hexdigest()}.tar"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = path.with_suffix(".part")
                try:
                    _unpack(url, part)
                    part.replace(path)
                except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
                    raise DatasetError(
                        f"{storage.shown(url)}: can't be unpacked ({error}). Is it whole?"
                    ) from None
                finally:
                    part.unlink(missing_ok=True)
            return path.open("rb")
    finally:
        os.close(held)


def _unpack(url: str, target: Path) -> None:
    with _decompressing(url) as source, target.open("wb") as file:
        while piece := source.read(2**22):
            if shutil.disk_usage(target.parent).free < _SPARE_BYTES + len(piece):
                raise DatasetError(
                    f"{storage.shown(url)}: does not fit unpacked into {target.parent}, with 1 GiB "
                    "to spare. Set TMPDIR to a larger disk, or unpack it yourself."
                )
            file.write(piece)


def _decompressing(url: str) -> Any:
    raw = io.BufferedReader(storage.StorageFile(url), 2**23)
    if url.lower().endswith(".bz2"):
        return bz2.open(raw)
    if url.lower().endswith(".xz"):
        return lzma.open(raw)
    if url.lower().endswith(".zst"):
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return gzip.open(raw)
