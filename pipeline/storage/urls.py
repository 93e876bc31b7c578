"""URLs as plain strings: joining them, telling local ones apart, and showing them in messages."""

import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pipeline.errors import StorageError

_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


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
    return Path(_SCHEME.sub("", url))


def absolute(url: str) -> str:
    """The same place named from the root, so that another process's working folder is no matter."""
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


def below(url: str, name: str) -> str:
    """`name`, which came from a file, below `url`; raises `StorageError` where it leads out."""
    if _SCHEME.match(name) or name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise StorageError(
            f"{shown(url)}: {name!r} leads out of it. Whoever wrote that meant harm, or wrote it "
            "with another program: nothing was read or written there."
        )
    return join(url, name)


def shown(url: str) -> str:
    """The URL for a message: without user, password, signature or token."""
    if protocol(url) == "file":
        return url
    pieces = urlsplit(url)
    host = pieces.netloc.rpartition("@")[2]
    secret = bool(re.search(r"(?i)signature|token|credential|key=", pieces.query))
    return urlunsplit(pieces._replace(netloc=host, query="..." if secret else pieces.query))


def bucket_and_key(url: str) -> tuple[str, str]:
    """`s3://bucket/a/b` as (`bucket`, `a/b`); the key may be empty."""
    bucket, _, key = _SCHEME.sub("", url).partition("/")
    return bucket.rpartition("@")[2], key
