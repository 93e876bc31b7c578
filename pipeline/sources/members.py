"""What lies in a tar or zip: every member, links followed, tars joined by `cat` read on."""

import io
import posixpath
import stat as file_modes
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO, Literal

from pipeline import storage
from pipeline.data.image_kinds import HEAD_BYTES
from pipeline.errors import DatasetError

BLOCK = tarfile.BLOCKSIZE
SPARSE = "sparse"
_PIECE = 2**20
"""Copied at a time: a member of any size passes through 1 MiB of memory."""
_MOST_HOPS = 40
"""As many links after one another as Linux follows."""
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What reading one member raises: damaged, encrypted, packed in a way that Python can't undo."""


def _nothing() -> bytes:
    return b""


@dataclass(frozen=True)
class ArchiveMember:
    """A file in an archive: a tar's by the `offset` of its bytes, a zip's (-1) by its name.

    Of a tar's sparse file, `member` is `SPARSE` and `offset` that of its header. `dangling`: a link
    that leads to no member.
    """

    name: str
    size: int
    etag: str
    offset: int = -1
    member: str = ""
    inner: str = ""
    """The archive in the archive that holds it; see `archives.inner_of`."""
    kind: Literal["file", "folder", "dangling", "other"] = "file"
    linked: bool = False
    """Whether this is a link's name for a file that has a name of its own."""
    peek: Callable[[], bytes] = _nothing
    """Its first bytes; to be called before the next member is asked for."""


class _Window(io.RawIOBase):
    """Bytes [start, stop) of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._start, self._size, self._at = file, start, stop - start, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        self._file.seek(self._start + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def tar_members(
    file: BinaryIO, start: int, stop: int, etag: str, where: str
) -> Iterator[ArchiveMember]:
    """Every member of the tars in bytes [start, stop) of `file`; links come last.

    Raises `DatasetError` naming `where` for a tar that is not whole.
    """
    links = False
    for base, info in tar_headers(file, start, stop, where):
        if info.issym() or info.islnk():
            links = True
        else:
            yield _tar_member(file, base, info, etag)
    if links:
        yield from _followed(file, start, stop, etag, where)


def _tar_member(file: BinaryIO, base: int, info: tarfile.TarInfo, etag: str) -> ArchiveMember:
    if not info.isreg():
        kind: Literal["folder", "other"] = "folder" if info.isdir() else "other"
        return ArchiveMember(info.name, 0, etag, kind=kind)
    if info.issparse():
        return ArchiveMember(info.name, info.size, etag, base + info.offset, SPARSE)
    offset = base + info.offset_data

    def peek() -> bytes:
        file.seek(offset)
        return file.read(min(HEAD_BYTES, info.size))

    return ArchiveMember(info.name, info.size, etag, offset, peek=peek)


def tar_headers(
    file: BinaryIO, start: int, stop: int, where: str
) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Each tar's first byte with each of its headers, for tars that follow one another."""
    following: int | None = start
    while following is not None:
        base = following
        try:
            with tarfile.open(fileobj=_Window(file, base, stop), mode="r:") as tar:
                for info in tar:
                    if info.isreg() and not info.issparse():
                        _check_whole(base + info.offset_data + info.size, stop, info.name, where)
                    yield base, info
                    tar.members = []  # type: ignore[attr-defined]  # it keeps all headers otherwise
                end = base + tar.offset
        except tarfile.TarError as error:
            if base > start:
                raise DatasetError(
                    f"{where}: {stop - base:,} bytes follow its end mark, and are no tar ({error})."
                    " Cut them off, or copy it again."
                ) from None
            raise DatasetError(
                f"{where}: can't be read as a tar ({error}): it was cut short, or is none. Copy it "
                "again."
            ) from None
        file.seek(end)
        check_tar_end(file.read(max(min(2 * BLOCK, stop - end), 0)), end, where)
        following = _next_tar(file, base, end, stop)


def _check_whole(end: int, stop: int, name: str, where: str) -> None:
    if end > stop:
        raise DatasetError(
            f"{where}: ends inside {name}: it was cut short. Copy it "
            "again, or give another `--source URL`."
        )


def check_tar_end(tail: bytes, end: int, where: str) -> None:
    """A tar ends with two blocks of zeros, here at `end`, where its reader found no header.

    Raises `DatasetError`: every reader takes a tar that was cut at a header for a shorter one.
    """
    if tail != bytes(2 * BLOCK):
        raise DatasetError(
            f"{where}: has no end mark after byte {end:,}: it was cut short at a "
            "member's border, or damaged there. Copy it again."
        )


def _next_tar(file: BinaryIO, base: int, end: int, stop: int) -> int | None:
    """Where, behind an end mark at `end`, another tar begins; None where only zeros follow."""
    at = end + 2 * BLOCK
    while at < stop:
        file.seek(at)
        piece = file.read(min(_PIECE, stop - at))
        if not piece:
            return None
        found = len(piece) - len(piece.lstrip(b"\0"))
        if found < len(piece):
            return at + found - (at + found - base) % BLOCK
        at += len(piece)
    return None


def _followed(
    file: BinaryIO, start: int, stop: int, etag: str, where: str
) -> Iterator[ArchiveMember]:
    """The members that links of a tar lead to, under the links' names.

    A second look at the headers, which only tars with links need; it keeps all names.
    """
    files: dict[str, ArchiveMember] = {}
    links: dict[str, str] = {}
    for base, info in tar_headers(file, start, stop, where):
        name = posixpath.normpath(info.name.lstrip("/"))
        if info.issym():
            links[name] = posixpath.join(posixpath.dirname(name), info.linkname)
        elif info.islnk():
            links[name] = info.linkname.lstrip("/")
        else:
            links.pop(name, None)
            member = _tar_member(file, base, info, etag)
            if member.kind == "file":
                files[name] = member
    yield from followed(files, links, etag)


def followed(
    files: dict[str, ArchiveMember], links: dict[str, str], etag: str
) -> Iterator[ArchiveMember]:
    """What each link leads to: one file, all files of a folder, or nothing (`dangling`)."""
    for name, target in links.items():
        found = _resolve(target, links)
        if found in files:
            yield replace(files[found], name=name, linked=True)
            continue
        below = f"{found}/"
        inside = [path for path in files if found is not None and path.startswith(below)]
        if not inside or f"{name}/".startswith(below):
            yield ArchiveMember(name, 0, etag, kind="dangling")
        for path in inside if not f"{name}/".startswith(below) else ():
            yield replace(files[path], name=f"{name}/{path.removeprefix(below)}", linked=True)


def _resolve(path: str, links: dict[str, str]) -> str | None:
    """Where a path leads, its folders being links too; None outside of the archive, or in rings."""
    for _ in range(_MOST_HOPS):
        path = posixpath.normpath(path)
        if path.startswith(("/", "..")):
            return None
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            link = links.get("/".join(parts[:count]))
            if link is not None:
                path = posixpath.join(link, *parts[count:])
                break
        else:
            return path
    return None


def zip_members(archive: zipfile.ZipFile) -> Iterator[ArchiveMember]:
    """Every member of a zip, links followed.

    Where no name has a `/`, which the format demands, Windows wrote `\\` instead.
    """
    infos = archive.infolist()
    windows = not any("/" in info.filename for info in infos)
    files: dict[str, ArchiveMember] = {}
    links: dict[str, str] = {}
    for info in infos:
        name = info.filename.replace("\\", "/") if windows else info.filename
        member = _zip_member(archive, info, name)
        if file_modes.S_ISLNK(info.external_attr >> 16):
            links[posixpath.normpath(name)] = posixpath.join(
                posixpath.dirname(name), member.peek().decode(errors="replace")
            )
            continue
        yield member
    if links:
        for info in infos:
            name = info.filename.replace("\\", "/") if windows else info.filename
            if posixpath.normpath(name) not in links and not name.endswith("/"):
                files[posixpath.normpath(name)] = _zip_member(archive, info, name)
        yield from followed(files, links, "")


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> ArchiveMember:
    etag = f"crc32:{info.CRC:08x}"
    if name.endswith("/"):
        return ArchiveMember(name, 0, etag, kind="folder")

    def peek() -> bytes:
        try:
            with archive.open(info) as file:
                # A link's target may be as long as a path.
                return file.read(4096 if file_modes.S_ISLNK(info.external_attr >> 16) else 64)
        except ZIP_ERRORS:
            return b""

    return ArchiveMember(name, info.file_size, etag, member=info.filename, peek=peek)


def where_of(url: str, inner: str = "") -> str:
    """How a message names an archive, or one in an archive."""
    return f"{storage.shown(url)}#{inner}" if inner else storage.shown(url)
