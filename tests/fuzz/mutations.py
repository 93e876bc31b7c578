"""What whoever means harm does to a file that is whole: to its bytes, and to what its JSON says."""

import copy
import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Patch(NamedTuple):
    """A change of bytes: at a place (counted round) some are written over, put in or cut off."""

    at: int
    how: str
    piece: bytes


_PIECES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from(
        [b"\0" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\x80" + b"\0" * 7, b"\xff\xff\xff\x7f",
         b"\xd8\x00\xdc\x00", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"NaN", b"1e999",
         b"-1", b'"', b"\n", b"\r\n", b",", b"\xef\xbb\xbf", b"\xff\xfe", "\u202e".encode()]
    ),
)  # fmt: skip
PATCHES = st.lists(
    st.builds(
        Patch,
        st.integers(0, 2**20),
        st.sampled_from(["over", "over", "over", "in", "cut", "drop"]),
        _PIECES,
    ),
    min_size=1,
    max_size=4,
).map(tuple)


def patched(data: bytes, patches: Sequence[Patch]) -> bytes:
    """The bytes after all changes."""
    for at, how, piece in patches:
        place = at % (len(data) + 1)
        if how == "over":
            data = data[:place] + piece + data[place + len(piece) :]
        elif how == "in":
            data = data[:place] + piece + data[place:]
        elif how == "cut":
            data = data[:place]
        else:
            data = data[:place] + data[place + len(piece) :]
    return data


class Raw(str):
    """JSON as it is to stand in the text, sane or not."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Raw({str(self)!r})"


class Edit(NamedTuple):
    """A change of what JSON says, at a node of it: counted round, or by its path, as `shards.0`."""

    node: int | str
    how: str
    value: Any


_NUMBERS: list[Any] = [
    -1, 0, 1, 2, 7, 512, 2**27, 2**31 - 1, 2**31, 2**40, 2**53 + 1, 2**63 - 1, 2**63, 10**18,
    10**19 - 1, 10**30, -(2**63), 0.5, -0.0, 1e38, 1e200, 1e308, -1e308, 5e-324, 1e-300,
]  # fmt: skip
_TEXTS = [
    "", ".", "..", "../up", "/etc/passwd", "a//b", "file:///etc/passwd", "s3://b/k", "http://[",
    "x::file:///y", "\x1b[2J", "\u202e", "\x00", "\ud800", "a" * 5000, "0" * 64, "f" * 32, "AAAA",
    "/////w==", "nan", "1", "train", "int8", "conv", "mlp", "linear", "autoencoder_kl", "custom",
    "os:system", "moments", "sample", "\u0131", "e\u0301", "\U0001f600",
]  # fmt: skip
_RAW = [
    Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("-1e-999"), Raw("9" * 100), Raw("01"), Raw(""),
    Raw("[" * 300 + "]" * 300), Raw("[" * 5000), Raw('{"a":' * 300 + "1" + "}" * 300),
    Raw('"\\ud800"'), Raw('{"a":1,"a":2}'),
]  # fmt: skip
_PLAIN = st.one_of(
    st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.sampled_from(_TEXTS),
    st.integers(-(2**65), 2**65), st.floats(), st.text(max_size=12),
)  # fmt: skip
_VALUES = st.one_of(
    _PLAIN,
    st.sampled_from(_RAW),
    st.lists(_PLAIN, max_size=4),
    st.dictionaries(st.text(max_size=6), _PLAIN, max_size=3),
)
EDITS = st.lists(
    st.builds(
        Edit,
        st.integers(0, 2**12),
        st.sampled_from(["set", "set", "set", "set", "delete", "twice", "rename", "copy", "more"]),
        _VALUES,
    ),
    min_size=1,
    max_size=4,
).map(tuple)
FORGED = st.one_of(st.tuples(EDITS, st.just(())), st.tuples(EDITS, PATCHES))
"""Edits of what it says, and patches of how that is spelled; the checksum fits both."""


def edited(value: Any, edits: Sequence[Edit]) -> Any:
    """The JSON after all changes, to be spelled by `spelled`."""
    root = {"": copy.deepcopy(value)}
    for node, how, new in edits:
        nodes = _nodes(root)
        inside, key = _at(root, node) if isinstance(node, str) else nodes[node % len(nodes)]
        if how == "copy" and isinstance(node, int):
            other, name = nodes[(7 * node + 3) % len(nodes)]
            inside[key] = copy.deepcopy(other[name])
        elif how == "more" and isinstance(inside[key], list | dict):
            _add(inside[key], new)
        elif how == "delete" and inside is not root:
            del inside[key]
        elif how == "rename" and isinstance(inside, dict) and inside is not root:
            inside[str(new)[:20]] = inside.pop(key)
        elif how == "twice" and isinstance(inside, dict) and inside is not root:
            again = f"{json.dumps(key)}:{spelled(new)}"
            inside[key] = Raw(f"{spelled(inside[key])},{again}")
        else:
            inside[key] = new
    return root[""]


def _at(root: Any, path: str) -> tuple[Any, Any]:
    inside: Any = root
    key: Any = ""
    for part in path.split("."):
        inside = inside[key]
        key = int(part) if isinstance(inside, list) else part
    return inside, key


def _add(inside: Any, new: Any) -> None:
    if isinstance(inside, list):
        inside += copy.deepcopy(inside[:2]) or [new]
    else:
        inside[f"more {len(inside)}"] = new


def _nodes(root: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[tuple[Any, Any]] = [(root, "")]
    while waiting:
        inside, key = waiting.pop()
        found.append((inside, key))
        below = inside[key]
        if isinstance(below, dict):
            waiting += [(below, name) for name in below]
        elif isinstance(below, list):
            waiting += [(below, number) for number in range(len(below))]
    return found


def spelled(value: Any) -> str:
    """The text of JSON that may be insane."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k))}:{spelled(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(spelled, value))}]"
    return json.dumps(value)


def sealed(text: bytes) -> bytes:
    """A document of ours whose checksum fits, whatever it says."""
    rest = text[1:]
    return b'{"checksum":"' + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest
