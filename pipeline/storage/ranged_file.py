"""Bytes that are had piece by piece, as a file that can be sought in."""

import io
from collections.abc import Callable
from typing import Any


class RangedFile(io.RawIOBase):
    """What `read(start, stop)` gives, as a file of `size` bytes with a place of its own."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self.size, self._at = read, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a byte; nothing is read yet."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """The next byte's position."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on; fewer than asked for at the end."""
        left = max(self.size - self._at, 0)
        data = self._read(self._at, self._at + (left if size < 0 else min(size, left)))
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` from here on, by one call."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)
