"""What a Parquet file's footer may claim, seen before Arrow reads it.

Arrow goes down a schema by calling itself: 50,000 groups in each other, 350 KB of a file, end the
process. The footer is Thrift in its compact form; of it the schemas are read, all else is passed.
"""

import struct
from functools import lru_cache
from typing import Any

_MAGIC = b"PAR1"
_TAIL = 8
MOST_FOOTER_BYTES = 2**28
"""10^6 chunks of columns need about as much."""
MOST_LEVELS = 200
"""A list needs two or three of them."""
_NESTED = 64
"""Structs and lists in each other: the format has six, and Thrift itself follows no more."""

_BOOLEANS, _BYTE, _INTEGERS, _DOUBLE, _BINARY = (1, 2), 3, (4, 5, 6), 7, 8
_LISTS, _MAP, _STRUCT = (9, 10), 11, 12
_SCHEMA, _CHILDREN = 2, 5
"""Fields: `FileMetaData.schema`, `SchemaElement.num_children`."""


def check_footer(file: Any, size: int) -> None:
    """Raises `ValueError` for a footer whose schema is nested too deeply, or that makes no sense.

    What has no footer at all is left to Arrow, which says so.
    """
    if size < _TAIL + len(_MAGIC):
        return
    file.seek(size - _TAIL)
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != _MAGIC or length > size - _TAIL:
        return
    if length > MOST_FOOTER_BYTES:
        raise ValueError(f"its footer is of {length:,} bytes, over {MOST_FOOTER_BYTES:,}")
    file.seek(size - _TAIL - length)
    _check(bytes(file.read(length)))
    file.seek(0)


@lru_cache(maxsize=4)  # a table is opened once for each group that is read
def _check(footer: bytes) -> None:
    try:
        _Thrift(footer).check_metadata()
    except (IndexError, struct.error):
        raise ValueError("its footer makes no sense: it ends within a value") from None


class _Thrift:
    """Bytes of Thrift's compact protocol, read from a place on."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def check_metadata(self) -> None:
        """The outermost struct; every schema in it, should it be there twice."""
        last = 0
        while (head := self._byte()) != 0:
            kind, last = head & 15, self._field(head, last)
            if last == _SCHEMA and kind in _LISTS:
                self._check_schema()
            else:
                self._pass(kind, 0)

    def _check_schema(self) -> None:
        size, kind = self._list_head()
        if kind != _STRUCT:
            raise ValueError("its footer makes no sense: a schema of no elements")
        left: list[int] = []
        for _ in range(size):
            children = self._element()
            while left and not left[-1]:
                left.pop()
            if left:
                left[-1] -= 1
            if children > 0:
                left.append(children)
            if len(left) > MOST_LEVELS:
                raise ValueError(f"its columns are nested more than {MOST_LEVELS} levels deep")

    def _element(self) -> int:
        """How many children one element of a schema has."""
        last, children = 0, 0
        while (head := self._byte()) != 0:
            kind, last = head & 15, self._field(head, last)
            if last == _CHILDREN and kind in _INTEGERS:
                number = self._varint()
                children = (number >> 1) ^ -(number & 1)
            else:
                self._pass(kind, 1)
        return children

    def _field(self, head: int, last: int) -> int:
        """A field's number: so much after the last one's, or written out; 16 bits of it count."""
        if head >> 4:
            number = last + (head >> 4)
        else:
            found = self._varint()
            number = (found >> 1) ^ -(found & 1)
        return (number + 2**15) % 2**16 - 2**15

    def _pass(self, kind: int, depth: int) -> None:
        """Goes behind a value that is not looked at."""
        if depth > _NESTED:
            raise ValueError(f"its footer is nested more than {_NESTED} levels deep")
        if kind in _INTEGERS:
            self._varint()
        elif kind == _BINARY:
            length = self._varint()
            self._at += length
        elif kind == _STRUCT:
            while (head := self._byte()) != 0:
                if not head >> 4:
                    self._varint()
                self._pass(head & 15, depth + 1)
        elif kind in _LISTS:
            size, inside = self._list_head()
            for _ in range(size):
                self._pass(_BYTE if inside in _BOOLEANS else inside, depth + 1)
        elif kind == _MAP:
            self._pass_map(depth)
        elif kind in (_BYTE, _DOUBLE):
            self._at += 1 if kind == _BYTE else 8
        elif kind not in _BOOLEANS:
            raise ValueError(f"its footer makes no sense: a value of the kind {kind}")

    def _pass_map(self, depth: int) -> None:
        size = self._bounded(self._varint())
        kinds = self._byte() if size else 0
        for _ in range(size):
            for kind in (kinds >> 4, kinds & 15):
                self._pass(_BYTE if kind in _BOOLEANS else kind, depth + 1)

    def _list_head(self) -> tuple[int, int]:
        """How many values a list has, and their kind."""
        head = self._byte()
        size = head >> 4
        return self._bounded(self._varint() if size == 15 else size), head & 15

    def _bounded(self, size: int) -> int:
        """Each value takes a byte at least."""
        if size > len(self._data) - self._at:
            raise ValueError(f"its footer makes no sense: a list of {size:,} values")
        return size

    def _byte(self) -> int:
        found = self._data[self._at]
        self._at += 1
        return found

    def _varint(self) -> int:
        found = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            found |= (byte & 127) << shift
            if byte < 128:
                return found
            shift += 7
            if shift > 63:
                raise ValueError("its footer makes no sense: a number of more than 64 bits")
