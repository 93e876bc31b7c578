"""Images inside tar and zip archives, compressed tars too: listed, and read one by one.

What an archive is, its first bytes say: browsers unpack a `.tar.gz` and leave its name as it was.

A compressed tar can't be read from its middle, so it is unpacked once, into this machine's
temporary folder, where all processes of a pack find it; `forget_unpacked` removes it.
"""

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from pipeline import storage
from pipeline.data.image_kinds import HEAD_BYTES, container_of
from pipeline.errors import (
    ObjectChangedError,
    ObjectNotFoundError,
    SampleError,
    StorageError,
    StorageShortageError,
    UnreadableError,
    is_shortage,
)
from pipeline.sources.joined_streams import open_bz2, open_xz
from pipeline.sources.members import (
    ARCHIVE_ERRORS,
    SPARSE,
    ArchiveMember,
    section,
    tar_members,
    where_of,
    zip_members,
    zip_tag,
)
from pipeline.sources.zip_end import (
    is_last_volume,
    mend_offsets,
    refuse_joined,
    without_comment,
)
from pipeline.storage.ranged_file import RangedFile

COMPRESSED_SUFFIXES = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.lzma", ".tar.zst",
    ".tzst",
)  # fmt: skip
ARCHIVE_SUFFIXES = (".tar", ".zip", *COMPRESSED_SUFFIXES)


@dataclass(frozen=True)
class MemberPlace:
    """Where a member's bytes are; the fields of `ArchiveMember` that say so."""

    offset: int
    member: str
    inner: str
    size: int


_BLOCKS = 2**13
"""Of a local tar, read at a time: some headers of small members, one of a large one."""
_SPARE_BYTES = 2**30
"""Unpacking leaves that much of the disk free: a small archive may claim to hold terabytes."""


def is_archive(url: str) -> bool:
    """By its suffix."""
    return url.lower().endswith(ARCHIVE_SUFFIXES)


def without_archive_suffix(path: str) -> str:
    """`a/b.tar.gz` as `a/b`: the folder that an archive stands for."""
    suffix = next((each for each in ARCHIVE_SUFFIXES if path.lower().endswith(each)), "")
    return path[: len(path) - len(suffix)]


def is_unnamed_archive(url: str) -> bool:
    """Whether an object without an archive's suffix is a tar, zip or compressed tar."""
    return container_of(storage.read(url, 0, HEAD_BYTES)) in ("tar", "zip", *_READERS)


def members_of(url: str, etag: str, inner: str = "") -> Iterator[ArchiveMember]:
    """All members of an archive, or of the archive `inner` in it, which `inner_of` names.

    Raises `UnreadableError` for an archive that is not whole.
    """
    where = where_of(url, _name_of(inner))
    if _container(url, etag, inner) == "zip":
        yield from zip_members(_open_zip(url, etag, inner))
        return
    with _tar_file(url, etag, inner) as file:
        stop = file.seek(0, io.SEEK_END)
        yield from tar_members(file, 0, stop, etag, where)


def members_inside(url: str, etag: str, member: ArchiveMember) -> Iterator[ArchiveMember]:
    """The members of an archive that is itself the `member` of the archive at `url`.

    A plain tar in a tar is read where it lies; any other is unpacked first.
    """
    where = where_of(url, member.name)
    if member.offset >= 0 and not member.member and container_of(member.peek()) in (None, "tar"):
        with _tar_file(url, etag, "") as file:
            stop = member.offset + member.size
            yield from tar_members(file, member.offset, stop, etag, where)
        return
    inner = inner_of(member)
    yield from (replace(found, inner=inner) for found in members_of(url, etag, inner))


def inner_of(member: ArchiveMember) -> str:
    """A text that finds an archive's member again: offset, size, what it is, name."""
    return json.dumps([member.offset, member.size, member.member, member.name])


def _name_of(inner: str) -> str:
    return str(json.loads(inner)[3]) if inner else ""


def read_member(url: str, etag: str, place: MemberPlace) -> bytes:
    """A member's bytes; as a slice: fewer where a tar ends before.

    `etag` is the member's: a zip's has its crc, any other the archive's tag when it was listed.

    Raises `SampleError` where a zip's or a sparse member can't be had whole, and
    `ObjectChangedError` where the archive is another one by now: whose bytes lie there then?
    `UnreadableError` is of an archive that can't be unpacked any more.
    """
    if place.member and place.offset < 0:
        return _read_zip_member(url, storage.stat(url).etag or "", place, etag)
    if place.member == SPARSE:
        data = _read_sparse(url, etag, place)
        storage.refuse_changed(url, etag)
        return data
    # What is unpacked was compared when it was.
    if place.inner or _container(url, etag, "") in _READERS:
        # By its own name here: a file that the cache lets go is closed, its number another one's.
        file = _unpacked(url, etag, place.inner)
        return os.pread(file.fileno(), place.size, place.offset)
    return storage.read(url, place.offset, place.offset + place.size, etag)


def _read_sparse(url: str, etag: str, place: MemberPlace) -> bytes:
    try:
        with _tar_file(url, etag, place.inner) as file:
            file.seek(place.offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                info = tar.next()
                found = tar.extractfile(info) if info is not None else None
                return found.read() if found is not None else b""
    except ARCHIVE_ERRORS as error:
        if is_shortage(error):
            raise
        raise SampleError("archive", f"sparse member: {error}") from None


def _read_zip_member(url: str, etag: str, place: MemberPlace, listed: str) -> bytes:
    try:
        archive = _open_zip(url, etag, place.inner)
        if archive.getinfo(place.member).flag_bits & 1:
            raise SampleError("encrypted", "is encrypted: unpack the archive with its password")
        if zip_tag(archive.getinfo(place.member)) != listed:
            raise ObjectChangedError(f"{storage.shown(url)}: has changed since it was listed.")
        with archive.open(place.member) as file:
            data = file.read(place.size + 1)  # no more than it says: a bomb may lie about its size
    except (KeyError, ObjectNotFoundError) as error:
        raise SampleError("missing", str(error)) from None
    except NotImplementedError:
        raise SampleError(
            "packed-otherwise",
            "its zip packs it by a method that can't be undone here (Deflate64, which Windows "
            "takes over 2 GB, zstd, PPMd): unpack the archive, and give the folder",
        ) from None
    except ARCHIVE_ERRORS as error:
        if is_shortage(error):
            raise
        raise SampleError("archive", f"{type(error).__name__}: {error}") from None
    if len(data) != place.size:
        raise SampleError(
            "archive", f"unpacks to more or less than the {place.size} bytes it states"
        )
    return data


def forget_unpacked() -> None:
    """Removes what this machine has unpacked; who has it open reads on.

    While another pack unpacks, all is left to that one's end.
    """
    _unpacked.cache_clear()
    if not os.path.lexists(_folder()):
        return
    try:
        handle = storage.private_folder(_folder())
    except StorageError:  # Another user's: nothing of ours lies there.
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(_folder(), ignore_errors=True)
    except OSError:  # In use.
        pass
    finally:
        os.close(handle)


@lru_cache(maxsize=4)
def _open_zip(url: str, etag: str, inner: str) -> zipfile.ZipFile:
    """A zip open for random access; one that changes is opened anew."""
    try:
        file: BinaryIO
        if inner:
            file = _reader(_unpacked(url, etag, inner))
        else:
            file = io.BufferedReader(storage.StorageFile(url), 2**16)
        if is_last_volume(file):
            where = where_of(url, _name_of(inner))
            raise UnreadableError(
                f"{where}: is the last part of a split archive. Join its parts first: "
                "zip -s 0 THIS --out WHOLE.zip, and pack that one."
            )
        archive = zipfile.ZipFile(without_comment(file))
        mend_offsets(archive)
    except ARCHIVE_ERRORS as error:
        if is_shortage(error):
            raise
        where = where_of(url, _name_of(inner))
        raise UnreadableError(f"{where}: can't be read ({error}). Is it whole?") from None
    refuse_joined(archive, where_of(url, _name_of(inner)))
    return archive


@lru_cache(maxsize=4096)
def _container(url: str, etag: str, inner: str) -> str:
    """What the archive is, by its first bytes; where they say nothing, by its name."""
    try:
        with _raw_stream(url, etag, inner) as file:
            found = container_of(file.read(HEAD_BYTES))
    except (*ARCHIVE_ERRORS, SampleError) as error:
        if is_shortage(error):
            raise
        raise UnreadableError(
            f"{where_of(url, _name_of(inner))}: can't be read ({error}). Is it whole?"
        ) from None
    name = (_name_of(inner) or url).lower()
    by_name = next((kind for suffixes, kind in _NAMED if name.endswith(suffixes)), "tar")
    return found if found in ("tar", "zip", *_READERS) else by_name


def _tar_file(url: str, etag: str, inner: str) -> BinaryIO:
    if not inner and _container(url, etag, "") == "tar":
        # A local read costs little, and headers are all that is read of most tars.
        local = storage.local_path(url) is not None
        return io.BufferedReader(storage.StorageFile(url), _BLOCKS if local else 2**20)
    return _reader(_unpacked(url, etag, inner))


def _reader(file: BinaryIO) -> BinaryIO:
    """The same file with a place of its own: threads share the one that is cached."""
    size = os.fstat(file.fileno()).st_size
    return io.BufferedReader(
        RangedFile(lambda start, stop: os.pread(file.fileno(), stop - start, start), size), _BLOCKS
    )


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"vae-pipeline-unpacked-{os.getuid()}"


def _hold_folder() -> int:
    """A handle on the folder; until it is closed, no other pack's end removes the folder."""
    folder = _folder()
    while True:
        handle = storage.private_folder(folder)
        fcntl.flock(handle, fcntl.LOCK_SH)
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)


@lru_cache(maxsize=64)
def _unpacked(url: str, etag: str, inner: str) -> BinaryIO:
    """A tar without its compression, or an archive in an archive, open for `os.pread`.

    The first process that needs it unpacks, others wait for that one.
    """
    held = _hold_folder()
    try:
        path = _folder() / f"{hashlib.sha256(f'{url} {etag} {inner}'.encode()).hexdigest()}.tar"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                part = path.with_suffix(".part")
                try:
                    _unpack(url, etag, inner, part)
                    storage.refuse_changed(url, etag)
                    part.replace(path)
                except (*ARCHIVE_ERRORS, SampleError) as error:
                    where = where_of(url, _name_of(inner))
                    if is_shortage(error):
                        raise StorageShortageError(f"{where}: unpacking failed: {error}.") from None
                    raise UnreadableError(
                        f"{where}: can't be unpacked ({error}). Is it whole?"
                    ) from None
                finally:
                    part.unlink(missing_ok=True)
            return path.open("rb")
    finally:
        os.close(held)


def _unpack(url: str, etag: str, inner: str, target: Path) -> None:
    with _plain_stream(url, etag, inner) as source, target.open("wb") as file:
        while piece := source.read(2**22):
            if shutil.disk_usage(target.parent).free < _SPARE_BYTES + len(piece):
                raise StorageShortageError(
                    f"{storage.shown(url)}: does not fit unpacked into {target.parent}, with 1 GiB "
                    "to spare. Set TMPDIR to a larger disk, or unpack it yourself."
                )
            file.write(piece)


def _plain_stream(url: str, etag: str, inner: str) -> Any:
    """The bytes of a tar without its compression; of an archive in an archive likewise."""
    reader = _READERS.get(_container(url, etag, inner))
    raw = _raw_stream(url, etag, inner)
    return reader(raw) if reader else raw


def _raw_stream(url: str, etag: str, inner: str) -> Any:
    """The bytes of an archive, or of an archive in an archive, as they lie there."""
    if not inner:
        return io.BufferedReader(storage.StorageFile(url), 2**23)
    offset, size, member, _ = json.loads(inner)
    if offset < 0:
        archive = _open_zip(url, etag, "")
        if archive.getinfo(member).flag_bits & 1:
            raise SampleError("encrypted", "is encrypted: unpack the archive with its password")
        return archive.open(member)
    file = _tar_file(url, etag, "")
    if member == SPARSE:
        file.seek(offset)
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # read on by the caller
        return tar.extractfile(tar.next())  # type: ignore[arg-type]
    return io.BufferedReader(section(file, offset, offset + size))


def _zstandard(raw: Any) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


_READERS: dict[str, Callable[[Any], Any]] = {
    "gzip": gzip.open, "bzip2": open_bz2, "xz": open_xz, "zstd": _zstandard,
}  # fmt: skip
_NAMED = (
    (".zip", "zip"),
    ((".gz", ".tgz"), "gzip"),
    ((".bz2", ".tbz", ".tbz2"), "bzip2"),
    ((".xz", ".txz", ".lzma"), "xz"),
    ((".zst", ".tzst"), "zstd"),
)
