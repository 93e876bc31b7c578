"""JSON that shows that it is what was written: a checksum over every byte, strict types.

    {"checksum":"SHA-256 of all that follows this comma",...}

A document is one line of canonical JSON, its checksum first. `parse_json` is for everything else.
"""

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import PipelineError, StorageError, first_refusal
from pipeline.json_value import Json, JsonValue
from pipeline.masking import one_line
from pipeline.storage.urls import removal

Value = TypeVar("Value")

MOST_DIGITS = 19
"""Of an integer: 2^63 has as many. Longer ones cost their square to read, and are nobody's."""

_MOST_SAID = 300
"""Characters of what a damaged document is told to say: it may say anything."""

_HEAD = b'{"checksum":"'
_SEALED = re.compile(rb'\{"checksum":"([0-9a-f]{64})",(?=")')
_LONG = re.compile(rb"\d{%d}" % (MOST_DIGITS + 1))
_SURROGATE = re.compile(rb"(?i)\\ud[89a-f]")


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, UTF-8, a newline at the end."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode() + b"\n"


def parse_json(data: bytes, url: str) -> Any:
    """The value of JSON that was read at `url`.

    Refused: nesting of a thousand levels, a key that occurs twice, NaN and infinity, integers of
    more than 19 digits, halves of a character, any encoding but UTF-8.
    """
    try:
        # Given bytes, `json` takes UTF-16 too, and halves of a character in any of them.
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=unique_keys,
            parse_int=_integer if _LONG.search(data) else None,
            parse_float=_finite,
            parse_constant=_no_number,
        )
        if _SURROGATE.search(data):
            canonical_json(value)
    except (ValueError, RecursionError) as error:
        said = "half a character" if isinstance(error, UnicodeEncodeError) else str(error)
        raise StorageError(f"{one_line(url)}: holds no JSON that is sane: {said}.") from None
    return value


def unique_keys(pairs: list[tuple[str, JsonValue]]) -> Json:
    """An object of JSON from its pairs; raises `ValueError` for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS + digits.startswith("-"):
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return value


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def checksum_of(document: bytes) -> str:
    """The checksum that stands in a document's bytes, 64 hexadecimal digits."""
    return document[len(_HEAD) : len(_HEAD) + 64].decode()


@dataclass(frozen=True)
class DocumentKind:
    """One kind of document: its format's name and version, and what to say of one that is none."""

    format: str
    version: int
    error: type[PipelineError]
    advice: str
    """What to do about a damaged one: a sentence."""
    anew: str = "make it anew in another place"
    """What to do where only another program version can read it, beside using that."""

    def encode(self, value: Json) -> bytes:
        """The document's bytes, the same for the same value."""
        rest = canonical_json({"format": self.format, "version": self.version, **value})[1:]
        return b"".join((_HEAD, hashlib.sha256(rest).hexdigest().encode(), b'",', rest))

    def parse(self, data: bytes, url: str) -> Json:
        """The value of a whole document of this kind; raises this kind's error naming `url`."""
        try:
            found = parse_json(data, url)
        except StorageError as error:
            raise self.error(f"{error} {self._advice(url)}") from None
        here = (found.get("format"), found.get("version")) if isinstance(found, dict) else None
        self._check_version(here, url)
        head = _SEALED.match(data)
        if head is None or hashlib.sha256(data[head.end() :]).digest() != bytes.fromhex(
            head.group(1).decode()
        ):
            raise self.error(
                f"{one_line(url)}: its checksum is not that of what it holds: it was damaged, or "
                f"changed by hand. {self._advice(url)}"
            )
        return {k: v for k, v in found.items() if k not in ("checksum", "format", "version")}

    def refuse_other_version(self, data: bytes, url: str) -> None:
        """Raises this kind's error for a document of it that another program version wrote.

        Damage is not told here: whoever reads it says what becomes of it.
        """
        try:
            found = parse_json(data, url)
        except StorageError:
            return
        if isinstance(found, dict) and found.get("format") == self.format:
            self._check_version((self.format, found.get("version")), url)

    def _check_version(self, here: tuple[Any, Any] | None, url: str) -> None:
        if here == (self.format, self.version) and not isinstance(here[1], bool):
            return
        said = "{} version {}".format(*map(_shown, here)) if here else f"no {self.format}"
        raise self.error(
            f"{one_line(url)}: is {said}; this program reads {self.format} version "
            f"{self.version}. Use the program version that wrote it, or {self.anew}."
        )

    def typed(self, kind: type[Value], value: Any, url: str) -> Value:
        """`value` as the record `kind`, whose annotations it must meet."""
        try:
            return _adapter(kind).validate_python(value)
        except (ValidationError, RecursionError, PipelineError) as error:
            raise self.damaged(url, error) from None

    def damaged(self, url: str, cause: object) -> PipelineError:
        """The error for a document whose checksum fits and whose contents make no sense."""
        if isinstance(cause, ValidationError):
            cause = first_refusal(cause)
        cause = " ".join(str(cause).split())[:_MOST_SAID]
        return self.error(f"{one_line(url)}: makes no sense ({cause}). {self._advice(url)}")

    def _advice(self, url: str) -> str:
        return self.advice.replace("Delete it", f"Delete it (`{removal(url)}`)", 1)


def _shown(value: JsonValue) -> str:
    """What a stranger's document says, in a few words: it may be nested a thousand deep."""
    if isinstance(value, list | dict):
        return f"a {type(value).__name__}"
    return repr(value[:50] if isinstance(value, str) else value)


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: type[Value]) -> TypeAdapter[Value]:
    """Building one costs a millisecond; there are few kinds."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]
