"""What lies in a tar or zip: every member, links followed, tars joined by `cat` read on."""

import itertools
import lzma
import posixpath
import re
import stat as file_modes
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Literal

from pipeline import storage
from pipeline.data.image_kinds import HEAD_BYTES, container_of
from pipeline.errors import DatasetError, UnreadableError, is_shortage
from pipeline.sources.tar_header import QuickHeader
from pipeline.storage.ranged_file import RangedFile

BLOCK = tarfile.BLOCKSIZE
SPARSE = "sparse"
_PIECE = 2**20
"""Copied at a time: a member of any size passes through 1 MiB of memory."""
_MOST_HOPS = 40
"""As many links after one another as Linux follows."""
_MOST_LINKED = 10**6
"""Names that links to folders may make: links in folders of links double with each level."""
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_LISTING_OF_A_FOLDER, _LATER_VOLUME = b"D", b"M"
_VOLUMES = "is a later volume of a tar in several. Unpack these with tar -M, and pack the folder."
GUESSED = "names in no UTF-8, read as CP437"
"""What these are counted under."""
ARCHIVE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError,
    NotImplementedError, RuntimeError, OSError, ValueError, ArithmeticError, LookupError,
    AttributeError,
)  # fmt: skip
"""What Python's readers are seen to raise on archives that are damaged, encrypted, packed in a way
that they can't undo, or say what makes no sense: numbers that are none, names in no encoding."""


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
    guessed: bool = False
    """Whether its name is in no encoding that is told, and was read as CP437."""
    peek: Callable[[], bytes] = _nothing
    """Its first bytes; to be called before the next member is asked for."""


def section(file: BinaryIO, start: int, stop: int) -> RangedFile:
    """Bytes [start, stop) of a file, as a file."""

    def read(first: int, last: int) -> bytes:
        file.seek(start + first)
        return file.read(last - first)

    return RangedFile(read, stop - start)


def tar_members(
    file: BinaryIO, start: int, stop: int, etag: str, where: str
) -> Iterator[ArchiveMember]:
    """Every member of the tars in bytes [start, stop) of `file`; links come last.

    Raises `UnreadableError` naming `where` for a tar that is not whole.
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
    if not _has_bytes(info):
        kind: Literal["folder", "other"] = "other" if info.type in _DEVICES else "folder"
        return ArchiveMember(info.name, 0, etag, kind=kind)
    if info.issparse():
        return ArchiveMember(info.name, info.size, etag, base + info.offset, SPARSE)
    offset = base + info.offset_data

    def peek() -> bytes:
        file.seek(offset)
        return file.read(min(HEAD_BYTES, info.size))

    return ArchiveMember(info.name, info.size, etag, offset, peek=peek)


def _has_bytes(info: tarfile.TarInfo) -> bool:
    """POSIX: a member of a type that one does not know is a file like any other."""
    known = (*_DEVICES, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, _LISTING_OF_A_FOLDER)
    return info.type not in known


def tar_headers(
    file: BinaryIO, start: int, stop: int, where: str
) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Each tar's first byte with each of its headers, for tars that follow one another."""
    following: int | None = start
    while following is not None:
        base = following
        try:
            whole = section(file, base, stop)
            with tarfile.open(fileobj=whole, mode="r:", tarinfo=QuickHeader) as tar:
                for info in tar:
                    if info.type == _LATER_VOLUME:
                        raise UnreadableError(f"{where}: {_VOLUMES}")
                    if info.size < 0:
                        raise tarfile.ReadError(f"{info.name!r} has a size below zero")
                    if _has_bytes(info) and not info.issparse():
                        _check_whole(base + info.offset_data + info.size, stop, info.name, where)
                    yield base, info
                    tar.members = []  # type: ignore[attr-defined]  # it keeps all headers otherwise
                end = base + tar.offset
        except ARCHIVE_ERRORS as error:
            if is_shortage(error):
                raise
            if base > start:
                raise UnreadableError(
                    f"{where}: {stop - base:,} bytes follow its end mark, and are no tar ({error})."
                    " Cut them off, or copy it again."
                ) from None
            file.seek(start)
            kind = container_of(file.read(HEAD_BYTES))
            if kind not in (None, "tar"):
                raise UnreadableError(
                    f"{where}: is {kind} by its first bytes, no plain tar: jobs.pack reads tars in "
                    "gzip, bzip2, xz and zstd, and zips."
                ) from None
            raise UnreadableError(
                f"{where}: can't be read as a tar ({error}): it was cut short, or is none. Copy it "
                "again."
            ) from None
        file.seek(end)
        check_tar_end(file.read(max(min(2 * BLOCK, stop - end), 0)), end, where)
        following = _next_tar(file, base, end, stop)


def _check_whole(end: int, stop: int, name: str, where: str) -> None:
    if end > stop:
        raise UnreadableError(
            f"{where}: ends inside {name}: it was cut short. Copy it again, or, if it is a "
            "volume of several (tar -M), unpack these with tar and give the folder, `--source URL`."
        )


def check_tar_end(tail: bytes, end: int, where: str) -> None:
    """A tar ends with two blocks of zeros, here at `end`, where its reader found no header.

    One is enough where the file ends with it: no member lay behind. Raises `UnreadableError`: every
    reader takes a tar that was cut at a header for a shorter one.
    """
    if len(tail) < BLOCK or any(tail):
        written = "" if tail else f" Was it written so, end it: head -c 1024 /dev/zero >> {where}"
        raise UnreadableError(
            f"{where}: has no end mark after byte {end:,}: it was cut short at a "
            f"member's border, or damaged there. Copy it again.{written}"
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
    """What each link leads to: one file, all that lies in a folder, or nothing (`dangling`).

    Raises `DatasetError` for links that lead to more names than any archive of images has.
    """
    tree = _Tree(files, links, etag, sorted({*files, *links}))
    for name in links:
        yield from tree.reached(name, links[name], frozenset())


@dataclass(frozen=True)
class _Tree:
    """An archive's files and links by normal names, of which `names` are all, sorted."""

    files: Mapping[str, ArchiveMember]
    links: Mapping[str, str]
    etag: str
    names: list[str]
    made: Iterator[int] = field(default_factory=itertools.count)

    def reached(self, name: str, target: str, above: frozenset[str]) -> Iterator[ArchiveMember]:
        """What a link called `name` leads to; `above` are folders that it must not lead into."""
        if next(self.made) > _MOST_LINKED:
            raise DatasetError(
                f"{name}: links to folders make over {_MOST_LINKED:,} names. Unpack the archive, "
                "remove those links, and pack the folder."
            )
        found = _resolve(target, self.links) or ""
        if found in self.files:
            yield replace(self.files[found], name=name, linked=True)
            return
        inside = [] if not found or found in above else self._below(found)
        if not inside or f"{name}/".startswith(f"{found}/"):
            yield ArchiveMember(name, 0, self.etag, kind="dangling")
            return
        for path in inside:
            place = f"{name}/{path[len(found) + 1 :]}"
            if path in self.links:
                yield from self.reached(place, self.links[path], above | {found})
            else:
                yield replace(self.files[path], name=place, linked=True)

    def _below(self, folder: str) -> list[str]:
        first = bisect_left(self.names, f"{folder}/")
        return self.names[first : bisect_left(self.names, f"{folder}0")]  # `0` follows on `/`


def _resolve(path: str, links: Mapping[str, str]) -> str | None:
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
    names = [_zip_name(info) for info in archive.infolist()]
    if not any("/" in name for name in names):
        names = [_slashed(*each) for each in zip(archive.infolist(), names, strict=True)]
    files: dict[str, ArchiveMember] = {}
    links: dict[str, str] = {}
    for info, name in zip(archive.infolist(), names, strict=True):
        member = _zip_member(archive, info, name)
        if file_modes.S_ISLNK(info.external_attr >> 16):
            links[posixpath.normpath(name)] = posixpath.join(
                posixpath.dirname(name), member.peek().decode(errors="replace")
            )
            continue
        yield member
    if links:
        for info, name in zip(archive.infolist(), names, strict=True):
            if posixpath.normpath(name) not in links and not name.endswith("/"):
                files[posixpath.normpath(name)] = _zip_member(archive, info, name)
        yield from followed(files, links, "")


def _zip_name(info: zipfile.ZipInfo) -> str:
    """macOS writes names in UTF-8 without the flag that says so: Python takes them for cp437.

    Others write them as Windows would, and in UTF-8 in a field beside.
    """
    extra = info.extra
    if info.flag_bits & _UTF8_FLAG or (info.filename.isascii() and not extra):
        return info.filename
    written = zlib.crc32(info.orig_filename.encode("cp437", "replace"))
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        # A program that renamed the member may have left the field: its checksum is the old name's.
        if kind == _UNICODE_PATH and length > 5 and extra[5:9] == written.to_bytes(4, "little"):
            return extra[9 : 4 + length].decode(errors="replace")
        extra = extra[4 + length :]
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _is_guessed(info: zipfile.ZipInfo, name: str) -> bool:
    """Whether a name is in no encoding that is told: read as CP437, as the format says."""
    return name == info.filename and not (info.flag_bits & _UTF8_FLAG or name.isascii())


def _slashed(info: zipfile.ZipInfo, name: str) -> str:
    """With `/` for `\\`, but for one that may be the second half of a Shift-JIS or GBK letter."""
    sign = r"(?<![^\0-\x7f])\\" if _is_guessed(info, name) else r"\\"
    return re.sub(sign, "/", name)


# PKWARE's APPNOTE.TXT, 4.4.4 (bit 11) and 4.6.9.
_UTF8_FLAG, _UNICODE_PATH = 0x800, 0x7075


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> ArchiveMember:
    etag = zip_tag(info)
    if name.endswith("/"):
        return ArchiveMember(name, 0, etag, kind="folder")

    def peek() -> bytes:
        try:
            with archive.open(info) as file:
                # A link's target may be as long as a path.
                link = file_modes.S_ISLNK(info.external_attr >> 16)
                return file.read(4096 if link else HEAD_BYTES)
        except ARCHIVE_ERRORS as error:
            if is_shortage(error):
                raise
            return b""

    return ArchiveMember(
        name, info.file_size, etag, member=info.filename,
        guessed=_is_guessed(info, _zip_name(info)), peek=peek,
    )  # fmt: skip


def zip_tag(info: zipfile.ZipInfo) -> str:
    """A member's own tag: one zip may be written anew with the same images in it."""
    return f"crc32:{info.CRC:08x}"


def where_of(url: str, inner: str = "") -> str:
    """How a message names an archive, or one in an archive."""
    return f"{storage.shown(url)}#{inner}" if inner else storage.shown(url)
