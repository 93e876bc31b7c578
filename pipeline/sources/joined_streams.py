"""Compressed streams that follow one another, as `cat` joins them, read strictly.

Python's own readers take whatever stands behind the first bzip2 or xz stream, and is none, for the
file's end: images behind a damaged header would be gone without a word.
"""

import bz2
import io
import lzma
from collections.abc import Callable
from typing import Any, BinaryIO

_PIECE = 2**20
_XZ_BYTES = 2**29
"""Of memory for xz: `xz -9` takes 65 MiB, a header may ask for gigabytes."""


class _JoinedStreams(io.RawIOBase):
    """What the streams of `raw` unpack to; zeros may stand between and behind them."""

    def __init__(self, raw: BinaryIO, make: Callable[[], Any]) -> None:
        self._raw, self._make = raw, make
        self._stream: Any = None
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises `EOFError` where a stream has no end, and what the stream says of other bytes."""
        while self._stream is not None or self._begins():
            data = self._stream.decompress(self._left, len(buffer))
            self._left = b""
            if self._stream.eof:
                self._left, self._stream = self._stream.unused_data, None
            elif not data and self._stream.needs_input:
                self._left = self._raw.read(_PIECE)
                if not self._left:
                    raise EOFError("it ends before the end of its compressed stream")
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def close(self) -> None:
        """Closes what it reads."""
        self._raw.close()
        super().close()

    def _begins(self) -> bool:
        """Whether another stream follows."""
        while not (left := self._left.lstrip(b"\0")):
            self._left = self._raw.read(_PIECE)
            if not self._left:
                return False
        self._left, self._stream = left, self._make()
        return True


def open_bz2(raw: BinaryIO) -> BinaryIO:
    """What bzip2 streams unpack to."""
    return io.BufferedReader(_JoinedStreams(raw, bz2.BZ2Decompressor), _PIECE)


def open_xz(raw: BinaryIO) -> BinaryIO:
    """What xz and lzma streams unpack to."""

    def make() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=_XZ_BYTES)

    return io.BufferedReader(_JoinedStreams(raw, make), _PIECE)
