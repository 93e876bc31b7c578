"""A sample's key and the path it was made from: one follows from the other, both ways.

A key is the whole path, its suffix too, percent-escaped but for letters, digits, `-`, `_` and `/`;
a dot is `%2E`, because webdataset cuts names at the first one. `urllib.parse.unquote` undoes it.
"""

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Collection
from pathlib import PurePosixPath
from urllib.parse import quote, unquote

_PLAIN = re.compile(r"[A-Za-z0-9_.-][A-Za-z0-9_./-]*")
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


def file_name_of(key: str) -> str:
    """A key as a relative path that any filesystem takes; long parts end in a hash of the whole."""
    return "/".join(_fitting(part) for part in key.split("/"))


def _fitting(part: str) -> str:
    if len(part.encode()) <= _NAME_BYTES:
        return part
    digest = hashlib.blake2b(part.encode(), digest_size=8).hexdigest()
    return f"{part.encode()[: _NAME_BYTES - 17].decode(errors='ignore')}-{digest}"
