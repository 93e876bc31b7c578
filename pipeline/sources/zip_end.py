"""The record that a zip ends with (APPNOTE.TXT, 4.3.16), where `zipfile` takes the wrong one."""

import io
import re
import zipfile
from typing import IO, BinaryIO

from pipeline.errors import UnreadableError
from pipeline.storage.ranged_file import RangedFile

_SIGN, _BYTES, _LENGTH = b"PK\5\6", 22, slice(20, 22)
_DIRECTORY, _WRAP = slice(16, 20), 2**32
_MOST_BYTES = _BYTES + 2**16
"""With the longest comment."""


def is_last_volume(file: BinaryIO) -> bool:
    """Whether a zip's end says that its members lie in files before this one."""
    _, record = _end_of(file)
    return record[4:6] not in (b"", b"\0\0", b"\xff\xff")  # the last: a zip64 says it elsewhere


def mend_offsets(archive: zipfile.ZipFile) -> None:
    """Gives members behind 4 GiB their places, of which macOS writes the last 32 bits alone.

    It knows no zip64. `zipfile` takes what is missing for bytes that stand before the zip, and so
    finds none of the members in the first 4 GiB.
    """
    if archive.fp is None or archive.start_dir < _WRAP:
        return
    _, record = _end_of(archive.fp)  # type: ignore[arg-type]
    stated = int.from_bytes(record[_DIRECTORY], "little")
    missing = archive.start_dir - stated
    if stated == _WRAP - 1 or missing % _WRAP:
        return
    last = -1
    for info in archive.infolist():  # in the order of their places
        at = info.header_offset - missing
        while at < archive.start_dir and (at <= last or not _is_member(archive.fp, at)):
            at += _WRAP
        info.header_offset = last = at
        if hasattr(info, "_end_offset"):  # what newer ones compare
            info._end_offset = None


def _is_member(file: IO[bytes], at: int) -> bool:
    file.seek(at)
    return file.read(4) == b"PK\3\4"


def refuse_joined(archive: zipfile.ZipFile, where: str) -> None:
    """Raises `UnreadableError` where another zip ends at this one's first byte.

    A program that unpacks itself stands there too, which is no loss; of zips that `cat` joined,
    every reader sees the last one alone.
    """
    first = min((info.header_offset for info in archive.infolist()), default=archive.start_dir)
    file = archive.fp
    if first < _BYTES or file is None:
        return
    begin = file.seek(max(first - _MOST_BYTES, 0))
    _, record = _record_in(file.read(first - begin))
    if record:
        raise UnreadableError(
            f"{where}: its first {first:,} bytes are another zip, whose images no reader of zips "
            f"sees. Cut them apart: head -c {first} THIS > ONE.zip; tail -c +{first + 1} THIS > "
            "TWO.zip, and pack these."
        )


def without_comment(file: BinaryIO) -> BinaryIO:
    """The same zip; without its comment where that holds the sign that `zipfile` looks for."""
    at, record = _end_of(file)
    if _SIGN not in record[_BYTES:]:
        return file
    end = at + _BYTES

    def read(start: int, stop: int) -> bytes:
        file.seek(start)
        data = bytearray(file.read(min(stop, end) - start))
        for place in range(max(start, end - 2), min(stop, end)):
            data[place - start] = 0  # the comment's length
        return bytes(data)

    return io.BufferedReader(RangedFile(read, end))


def _end_of(file: BinaryIO) -> tuple[int, bytes]:
    """Where the record begins that reaches to the file's end, and its bytes; (0, b"") for none."""
    size = file.seek(0, io.SEEK_END)
    start = file.seek(max(size - _MOST_BYTES, 0))
    at, record = _record_in(file.read())
    return (start + at, record) if record else (0, b"")


def _record_in(tail: bytes) -> tuple[int, bytes]:
    """The record that reaches to the end of these bytes, and where in them it begins."""
    for found in re.finditer(re.escape(_SIGN), tail):
        record = tail[found.start() :]
        if len(record) == _BYTES + int.from_bytes(record[_LENGTH], "little"):
            return found.start(), record
    return 0, b""
