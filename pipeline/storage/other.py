"""Any other fsspec filesystem: read and listed, in parts that are retried; never written."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

from pipeline.errors import StorageError
from pipeline.storage.retry import RequestFailedError, Verdict, retrying
from pipeline.storage.urls import leads_out, protocol, shown

_PART_BYTES = 16 * 2**20
"""Of one request: these filesystems give no stream, so a part that breaks is asked for anew."""


_SCHEMES = frozenset(
    ("http", "https", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs", "webhdfs", "oci", "oss",
     "hf", "memory")
)  # fmt: skip
"""Plain stores of objects. Not those that run templates, open archives or log in to machines."""


_STAYS: ContextVar[bool] = ContextVar("stays", default=False)


@contextmanager
def staying() -> Iterator[None]:
    """Inside, a server's redirect is followed only below the folder of what was asked for."""
    token = _STAYS.set(True)
    try:
        yield
    finally:
        _STAYS.reset(token)


class _MovedError(FileNotFoundError):
    """A server names another place than the one that was asked for."""


async def _staying_client(**settings: Any) -> Any:
    """An HTTP client that tells of a redirect that leads elsewhere, and does not follow it."""
    import aiohttp

    async def look(_session: Any, _context: Any, told: Any) -> None:
        asked = str(told.url)
        to = urljoin(asked, told.response.headers.get("Location", ""))
        at, moved = urlsplit(asked), urlsplit(to)
        same = (at.scheme, at.netloc) == (moved.scheme, moved.netloc)
        folder = at.path.rpartition("/")[0]
        if not same or leads_out(moved.path) or not moved.path.startswith(f"{folder}/"):
            raise _MovedError(
                f"the server says that it is at {shown(to)}, which was not followed: list that"
            )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(look)
    return aiohttp.ClientSession(trace_configs=[trace], **settings)


def _open(url: str) -> tuple[Any, str]:
    scheme = protocol(url)
    if scheme not in _SCHEMES or "::" in url:
        raise StorageError(
            f"{shown(url)}: {scheme}:// is no kind of address that is read here. Give a path, "
            f"s3://, or one of {', '.join(sorted(_SCHEMES))}."
        )
    import fsspec

    try:
        stays = (
            {"get_client": _staying_client} if _STAYS.get() and scheme in ("http", "https") else {}
        )
        filesystem, path = fsspec.core.url_to_fs(url, **stays)
    except Exception as error:
        # Each filesystem's own constructor raises what it likes: IndexError, TypeError, KeyError.
        raise StorageError(f"{shown(url)}: can't be opened: {error}.") from error
    return filesystem, str(path)


@contextmanager
def _request() -> Iterator[None]:
    """One try of something that asks the filesystem."""
    try:
        yield
    except OSError as error:
        moved = error.__cause__ if isinstance(error.__cause__, _MovedError) else error
        raise RequestFailedError(_verdict(error), moved) from error
    except Exception as error:
        # aiohttp's and each cloud's own errors are none of the system's.
        raise RequestFailedError("connection", error) from error


def _verdict(error: OSError) -> Verdict:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, PermissionError):
        return "denied"
    return "timeout" if isinstance(error, TimeoutError) else "connection"


def read(url: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end); fewer where the object ends before."""
    filesystem, path = _open(url)
    size = stat(url)[0]
    stop = size if end is None else min(size, end)
    parts: list[bytes] = []
    while start < stop:
        for attempt in retrying(url, "reading"):
            with attempt, _request():
                part = filesystem.cat_file(path, start=start, end=min(stop, start + _PART_BYTES))
        parts.append(part)
        start += len(part)
        if not part:
            raise StorageError(f"{shown(url)}: ended {stop - start} bytes before its size.")
    return b"".join(parts)


def stat(url: str) -> tuple[int, str | None]:
    """Size in bytes and a tag that changes with the content, where the filesystem has one."""
    filesystem, path = _open(url)
    size, tag = None, None
    for attempt in retrying(url, "looking it up"):
        with attempt, _request():
            size, tag = _size_and_tag(filesystem.info(path))
    if size is None:
        raise StorageError(f"{shown(url)}: its size is not known, so it can't be read in parts.")
    return size, tag


def walk(url: str) -> Iterator[tuple[str, int, str | None]]:
    """Every object below a prefix in the order of paths: URL, size in bytes and tag."""
    filesystem, path = _open(url)
    found: dict[str, tuple[int | None, str | None]] = {}
    for attempt in retrying(url, "listing"):
        with attempt, _request():
            listed = filesystem.find(path, detail=True)
            found = {name: _size_and_tag(info) for name, info in listed.items()}
    for name in sorted(found):
        size, tag = found[name]
        yield filesystem.unstrip_protocol(name), size or 0, tag


def refuse_writing(url: str) -> NoReturn:
    """Raises: outputs go to local files and S3, where replacing and creating are exact."""
    raise StorageError(
        f"{shown(url)}: outputs go to local folders and s3:// only, where an object can be "
        "replaced at once and created exactly once. Give such a URL."
    )


_TAGS = ("ETag", "etag", "md5Hash", "mtime", "last_modified", "created")
"""What filesystems call that which changes with the content, the surest first."""


def _size_and_tag(info: Any) -> tuple[int | None, str | None]:
    """Of what a filesystem says of one object, in words of its own."""
    size = info.get("size")
    tag = next((str(info[name]).strip('"') for name in _TAGS if info.get(name) is not None), None)
    return None if size is None else int(size), tag
