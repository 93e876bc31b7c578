"""A sample's key and the path it was made from: one follows from the other, both ways.

A key is the whole path, its suffix too, percent-escaped but for letters, digits, `-`, `_` and `/`;
a dot is `%2E`, because webdataset cuts names at the first one. `urllib.parse.unquote` undoes it.
"""

import abc
import difflib
import hashlib
import operator
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, overload
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

_PLAIN = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_./-]*")
Numbers: TypeAlias = "slice | Sequence[int] | npt.NDArray[Any] | Tensor"
"""Of several things that are numbered."""
Thing = TypeVar("Thing")
_SCANNED_KEYS = 200_000
"""So many keys are compared for near ones: a second's work."""
_NAME_BYTES = 140
"""Of one part of a path: eCryptfs takes 143 bytes, others 255."""


def key_of(path: str) -> str:
    """The key of a path: no two paths share one."""
    if _PLAIN.fullmatch(path):  # most of 10^7, in a fifth of the time
        return path.replace(".", "%2E")
    return quote(path.lstrip("/"), safe="/-_").replace(".", "%2E").replace("~", "%7E")


def path_of(key: str) -> str:
    """The path that `key_of` made the key from; of a foreign key, what people would write."""
    return unquote(key)


def without_suffix(path: str) -> str:
    """`a/b.c.jpg` as `a/b.c`; a name that only begins or ends with a dot has none."""
    start, dot = path.rfind("/") + 1, path.rfind(".")
    return path[:dot] if start < dot < len(path) - 1 else path


def find_key(asked: str, keys: Collection[str]) -> str:
    """The one of `keys` that a person means by a key, or by a path with or without its suffix.

    `keys` answers `in` fast. Raises `KeyError` that names near ones, or those it may mean.
    """
    plain = asked.removeprefix("./").lstrip("/")
    forms = [unicodedata.normalize(form, plain) for form in ("NFC", "NFD")]
    for path in (plain, *forms):
        for key in (path, key_of(path)):
            if key in keys:
                return key
    # Adopted tars name their samples without suffix.
    if without_suffix(plain) in keys and not any("%2E" in key for key in keys):
        return without_suffix(plain)
    stems = tuple(f"{key_of(path)}%2E" for path in (plain, *forms))
    meant = [key for key in keys if key.startswith(stems) and "%2E" not in _rest(key, stems)]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise KeyError(f"{asked!r} may be {' or '.join(repr(path_of(key)) for key in meant[:4])}")
    raise KeyError(f"there is no {asked!r}. {_near(plain, keys)}")


def _rest(key: str, stems: tuple[str, ...]) -> str:
    return next(key[len(stem) :] for stem in stems if key.startswith(stem))


def _near(asked: str, keys: Collection[str]) -> str:
    paths = [path_of(key) for key, _ in zip(keys, range(_SCANNED_KEYS), strict=False)]
    same = [path for path in paths if PurePosixPath(path).name == PurePosixPath(asked).name]
    near = same or difflib.get_close_matches(asked, paths[:20_000], 3, 0.5) or paths
    return f"Near: {', '.join(map(repr, near[:3]))}." if near else "It is empty."


def numbers_asked(asked: object, length: int, where: str) -> int | list[int]:
    """The number, or the numbers, that an index in brackets asks for, all of them >= 0.

    A slice, a list or an array asks for several. Raises `TypeError` for what is no number, and
    `IndexError` for one that there is not.
    """
    if isinstance(asked, slice):
        return list(range(*asked.indices(length)))
    if isinstance(asked, str):
        raise TypeError(f"{where}: is asked by numbers; by a key it is `.by_key({asked!r})`")
    several = asked if isinstance(asked, list | tuple) else None
    if getattr(asked, "ndim", 0) == 1:
        several = asked.tolist()  # type: ignore[attr-defined]  # an array's or a tensor's
    if several is not None:
        return [_number(each, length, where) for each in several]
    return _number(asked, length, where)


def _number(asked: object, length: int, where: str) -> int:
    if isinstance(asked, bool):
        raise TypeError(f"{where}: takes numbers, no mask: `numpy.flatnonzero(mask)` makes them")
    try:
        number = operator.index(asked)  # type: ignore[arg-type]  # that is asked here
    except TypeError:
        raise TypeError(
            f"{where}: takes a number, a slice, or a list or array of whole numbers; found "
            f"{type(asked).__name__}"
        ) from None
    if not -length <= number < length:
        raise IndexError(f"{where}: holds {length}, asked for number {number}")
    return number % length


class Numbered(abc.ABC, Generic[Thing]):
    """What is asked for by number and by key: a dataset's samples, a store's latents.

    Its subclasses are frozen dataclasses.
    """

    url: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def keys(self) -> Iterator[str]:
        """All keys, in order."""

    @abc.abstractmethod
    def _one(self, number: int) -> Thing:
        """The one of this number, from 0 on."""

    @overload
    def __getitem__(self, number: int) -> Thing: ...
    @overload
    def __getitem__(self, number: Numbers) -> list[Thing]: ...
    def __getitem__(self, number: "int | Numbers") -> Thing | list[Thing]:
        """The one of this number (negative ones count from the end), by a read of its own; or a
        list, of a slice, a list or an array of numbers.

        Raises `IndexError` for a number that there is not, `TypeError` for what is none, and
        `SampleError` for a damaged image.
        """
        found = numbers_asked(number, len(self), f"{type(self).__name__} {self.url}")
        return self._one(found) if isinstance(found, int) else list(map(self._one, found))

    def __iter__(self) -> Iterator[Thing]:
        """All in their order, by a read each."""
        return map(self._one, range(len(self)))

    def by_key(self, key: str) -> Thing:
        """The one of this key, or of the image at this path, as people write it.

        The first call reads all keys, about 150 bytes each. Raises `KeyError` that names near ones
        for a key that is not there.
        """
        try:
            return self._one(self._number_of_key[find_key(key, self._number_of_key)])
        except KeyError as error:
            raise KeyError(f"{self.url}: {error.args[0]}") from None

    def __contains__(self, key: object) -> bool:
        """Whether `by_key` finds this key or path; raises `TypeError` for what is no text."""
        if not isinstance(key, str):
            raise TypeError(
                f"{type(self).__name__} {self.url}: `in` asks for a key or a path; found "
                f"{type(key).__name__}"
            )
        try:
            find_key(key, self._number_of_key)
        except KeyError:
            return False
        return True

    @cached_property
    def _number_of_key(self) -> dict[str, int]:
        return {key: number for number, key in enumerate(self.keys())}

    def __getstate__(self) -> object:
        """What it was made of: a process that gets it reads for itself, with its own locks."""
        made = fields(self)  # type: ignore[arg-type]  # its subclasses are dataclasses
        return {each.name: getattr(self, each.name) for each in made}


def file_name_of(key: str) -> str:
    """A key as a relative path that any filesystem takes; long parts end in a hash of the whole."""
    return "/".join(_fitting(part) for part in key.split("/"))


def _fitting(part: str) -> str:
    if len(part.encode()) <= _NAME_BYTES:
        return part
    digest = hashlib.blake2b(part.encode(), digest_size=8).hexdigest()
    return f"{part.encode()[: _NAME_BYTES - 17].decode(errors='ignore')}-{digest}"
