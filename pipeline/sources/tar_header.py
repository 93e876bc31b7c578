"""A tar's header of an ordinary file, read in a third of the time that `tarfile` needs for it."""

import tarfile
from typing import Any, Self

_KINDS = (tarfile.REGTYPE, tarfile.XHDTYPE)
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)
_MAGIC, _PREFIX = slice(257, 265), slice(345, 500)
_GNU_MAGIC = b"ustar  \0"
_LONG_KINDS = (
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)  # fmt: skip
"""Whose bytes are names and fields, which `tarfile` reads whole."""
_MOST_LONG_BYTES = 2**20
"""Of these: a path has 4,096."""
_MOST_HOLES = 2**18
"""Of one sparse member: each is a pair of numbers in memory, and the map comes before the bytes."""
_MAPS_OF_A_BLOCK = 21
"""Of old GNU's maps, behind the header's own four: tar.h, `SPARSES_IN_SPARSE_HEADER`."""


class QuickHeader(tarfile.TarInfo):
    """Name, size and type alone, where these are written plainly; all else is `tarfile`'s.

    POSIX, `ustar`: name 0..100, size 124..136, checksum 148..156, type 156, magic 257, prefix 345.
    GNU's own magic, `ustar  `, has no prefix: times of access and change stand there, which
    `tarfile` takes for a folder (python/cpython#155629).
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """From a block; raises `tarfile.HeaderError` as the class above does."""
        size, checksum = (_octal(bytes(buf[field])) for field in (_SIZE, _CHECKSUM))
        kind = bytes(buf[156:157])
        plain = size >= 0 and kind in _KINDS and buf[257:262] == b"ustar"
        # The checksum's own field counts as blanks.
        if not plain or sum(buf) - sum(buf[_CHECKSUM]) + 8 * ord(" ") != checksum:
            other = super().frombuf(buf, encoding, errors)
            _refuse_long(other.type, other.size)
            return cls._without_times(other, buf, encoding, errors)
        _refuse_long(kind, size)
        found = cls()
        found.size, found.type = size, kind
        found.name = _text(buf[:100], encoding, errors)
        prefix = _text(buf[_PREFIX], encoding, errors)
        if prefix and buf[_MAGIC] != _GNU_MAGIC:
            found.name = f"{prefix}/{found.name}"
        return found

    def _proc_sparse(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        """Of old GNU: blocks of pairs follow the header, each of which says whether one more."""
        file = tar.fileobj
        assert file is not None, "it is being read"
        start, more, blocks = file.tell(), self._sparse_structs[1], 0  # type: ignore[attr-defined]
        while more:
            blocks += 1
            if blocks * _MAPS_OF_A_BLOCK > _MOST_HOLES:
                raise _too_many_holes()
            more = file.read(tarfile.BLOCKSIZE)[504:505] not in (b"", b"\0")
        file.seek(start)
        return super()._proc_sparse(tar)  # type: ignore[misc, no-any-return]

    def _proc_gnusparse_10(self, member: tarfile.TarInfo, fields: Any, tar: Any) -> None:
        """Of POSIX, version 1.0: the member's bytes begin with the number of pairs."""
        start = tar.fileobj.tell()
        number = tar.fileobj.read(tarfile.BLOCKSIZE).partition(b"\n")[0]
        if not number.isdigit() or len(number) > 9 or int(number) > _MOST_HOLES:
            raise _too_many_holes()
        tar.fileobj.seek(start)
        super()._proc_gnusparse_10(member, fields, tar)  # type: ignore[misc]

    @classmethod
    def _without_times(
        cls, found: Self, buf: bytes | bytearray, encoding: str, errors: str
    ) -> Self:
        """A header of another type without the folder that `tarfile` made of GNU's times."""
        times = _text(buf[_PREFIX], encoding, errors)
        if times and buf[_MAGIC] == _GNU_MAGIC and found.type not in tarfile.GNU_TYPES:
            found.name = found.name.removeprefix(f"{times}/")
        return found


def _too_many_holes() -> tarfile.HeaderError:
    return tarfile.SubsequentHeaderError(  # type: ignore[attr-defined,no-any-return]
        f"a sparse file of more than {_MOST_HOLES:,} holes, or of no number of them"
    )


def _refuse_long(kind: bytes, size: int) -> None:
    if kind in _LONG_KINDS and not 0 <= size <= _MOST_LONG_BYTES:
        # Of tarfile's errors the one that it ends by, wherever the header lies.
        raise tarfile.SubsequentHeaderError(  # type: ignore[attr-defined]  # not in its stubs
            f"a header of {size:,} bytes for a name, over {_MOST_LONG_BYTES:,}"
        )


def _octal(field: bytes) -> int:
    """-1 for what is no plain number."""
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1


def _text(field: bytes | bytearray, encoding: str, errors: str) -> str:
    return bytes(field).partition(b"\0")[0].decode(encoding, errors)
