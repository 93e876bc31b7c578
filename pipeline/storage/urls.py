"""URLs as plain strings: joining them, telling local ones apart, and showing them in messages."""

import os
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable
from urllib.parse import unquote

from pipeline.errors import ConfigError, StorageError
from pipeline.masking import is_control, masked, one_line, shell_word


@runtime_checkable
class Placed(Protocol):
    """What is open, or was made, at one place: a dataset, a store, what a job ended with."""

    def as_place(self) -> str:
        """Its URL, for whoever takes one; raises where that would be another thing."""


Place: TypeAlias = str | os.PathLike[str] | Placed
"""A path, a URL, or what is there."""

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_MOST_ENCODINGS = 5
"""Of one name, each in the one before: nobody means more."""
_LONGEST_NAME = 4096
"""Linux opens no longer path, and S3 knows keys of 1,024 bytes."""
_PLAIN_NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}){0,9}"
)
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
"""Of a character in UTF-16; those left out stand for bytes of names that are no UTF-8."""
_NAME = re.compile(r"(?!.*://)[^\x00-\x1f\x7f-\x9f\\]+")


def _has_control(text: str) -> bool:
    return any(is_control(char) for char in text)


def protocol(url: str) -> str:
    """The scheme in lower case; "file" for a plain path."""
    found = _SCHEME.match(url)
    return found.group()[:-3].lower() if found and "::" not in url else _chained(url)


def _chained(url: str) -> str:
    return url.split("::", 1)[0] if "::" in url and _SCHEME.search(url.split("::")[-1]) else "file"


@lru_cache(maxsize=4096)  # asked for every sample that is read
def local_path(url: str) -> Path | None:
    """The path of a URL on the local filesystem, else None."""
    if protocol(url) != "file":
        return None
    if "\0" in url:
        raise StorageError(f"{shown(url)[:200]}: no file's name holds a NUL. Name another.")
    if not url.isascii() and _HALF.search(url):
        raise StorageError(f"{shown(url)[:200]}: no file's name holds half a character: rename it.")
    return Path(_SCHEME.sub("", url))


def named(given: Place, taker: str) -> str:
    """A place as text; raises `ConfigError`, in its taker's name, for what is none.

    The text of another object is a name, too, of a place that nobody meant.
    """
    found = plain(given)
    if isinstance(found, str) and found:
        return found
    kind = repr(found) if found is None or isinstance(found, str) else type(found).__name__
    raise ConfigError(f"{taker}: takes a path or a URL, found {kind}.")


def plain(given: object) -> object:
    """A place as text; anything else as it is."""
    if isinstance(given, os.PathLike):
        return os.fsdecode(given)
    return given.as_place() if isinstance(given, Placed) else given


def not_opened(given: object, kind: type, taker: str) -> ConfigError:
    """The error of who takes an opened `kind` (a `Dataset`) and was given something else."""
    opened = f"{kind.__name__}.open"
    place = f" `{opened}({str(given)!r})` is one." if isinstance(given, str | os.PathLike) else ""
    return ConfigError(f"{taker}: takes a {kind.__name__}, found {type(given).__name__}.{place}")


def absolute(url: str | Path) -> str:
    """The same place named from the root, so that another process's working folder is no matter."""
    url = str(url)
    path = local_path(url)
    return url if path is None else str(path.absolute())


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it; a part that is itself a URL or an absolute path replaces it."""
    for part in parts:
        if _SCHEME.match(part) or part.startswith("/"):
            url = part
        else:
            url = f"{url.rstrip('/')}/{part}" if url.rstrip("/") else f"/{part}"
    return url


def check_name(name: object, where: str) -> str:
    """`name`, which came from inside a file that lies at `where`, if it stays below its root.

    The one check of all names inside manifests, states, ledgers, receipts, snapshots and
    checkpoints: relative, without `..`, empty parts, scheme or control characters. Raises
    `StorageError`.
    """
    if isinstance(name, str) and _PLAIN_NAME.fullmatch(name):
        return name  # nearly all, in a tenth of the time: there are 10^5 of them in a manifest
    parts = name.split("/") if isinstance(name, str) else [""]
    bad = not isinstance(name, str) or len(name) > _LONGEST_NAME or "::" in name
    if bad or any(part in ("", ".", "..") for part in parts) or not _NAME.fullmatch(str(name)):
        shown_name = one_line(repr(name)[:200])
        raise StorageError(
            f"{shown(where)}: {shown_name} leads out of it. Whoever wrote that meant harm, or "
            "wrote it with another program: nothing was read or written there."
        )
    return str(name)


def below(url: str, name: object) -> str:
    """`name`, which came from a file, below `url`; raises `StorageError` where it leads out."""
    return join(url, check_name(name, url))


def leads_out(path: str) -> bool:
    """Whether a server may read a URL's path as one of another folder: `..`, however written.

    Percent-encoded once or several times, with backslashes, with parameters behind it.
    """
    for _ in range(_MOST_ENCODINGS):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    else:
        return True
    parts = [part.partition(";")[0] for part in re.split(r"[/\\]", path)]
    return any(part in (".", "..") for part in parts) or _has_control(path)


def check_address(address: str, prefixes: Sequence[str], where: str, flag: str) -> str:
    """A whole URL that came from inside a file at `where`, if it lies below one of `prefixes`.

    Only `file://`, `s3://` and `https://` can be named at all, and never a chain (`::`).
    """
    scheme, _, path = address.partition("://")
    bad = scheme not in ("file", "s3", "https") or "::" in address
    bad = bad or "@" in re.split("[/?#]", path, maxsplit=1)[0]
    bad = bad or leads_out(path)
    if bad or _has_control(address):
        raise StorageError(
            f"{shown(where)}: names {shown(address)}, and what a file names is read only from "
            "plain file://, s3:// and https:// addresses. Nothing was asked for."
        )
    for prefix in prefixes:
        whole = absolute(prefix)
        whole = whole if "://" in whole else f"file://{whole}"
        if address == whole or address.startswith(f"{whole.rstrip('/')}/"):
            return address
    raise StorageError(
        f"{shown(where)}: names {shown(address)}, which lies elsewhere. If you trust that place, "
        f"say so: {flag} {shown(address.rpartition('/')[0])}"
    )


def check_place(url: str, prefixes: Sequence[str], where: str, flag: str) -> str:
    """A place that a file at `where` names, if it may be asked without being named again.

    That is a path or an s3:// URL, of which the environment says where they are; of all others
    those below `prefixes`, which this command names. Raises `StorageError`.
    """
    if protocol(url) in ("file", "s3"):
        return url
    leads = "::" in url or leads_out(url.partition("://")[2])
    for prefix in (each.rstrip("/") for each in prefixes):
        if not leads and (url == prefix or url.startswith(f"{prefix}/")):
            return url
    raise StorageError(
        f"{shown(where)}: names {shown(url)}, which is neither a path nor an s3:// URL. It was not "
        f"asked for: if you trust it, say so by `{flag} {shell_word(url)}`."
    )


def removal(url: str) -> str:
    """The shell's command that removes one object."""
    return f"{'rm' if local_path(url) is not None else 'aws s3 rm'} {shell_word(url)}"


def shown(url: str) -> str:
    """The URL for a message: on one line, without user, password, signature or token."""
    return one_line(masked(url))


def bucket_and_key(url: str) -> tuple[str, str]:
    """`s3://bucket/a/b` as (`bucket`, `a/b`); the key may be empty."""
    bucket, _, key = _SCHEME.sub("", url).partition("/")
    return bucket.rpartition("@")[2], key
