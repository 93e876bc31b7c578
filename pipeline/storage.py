"""Objects behind URLs: ranged reads with retry, listing, atomic publishing, create-if-absent.

The only module that knows fsspec. `s3://` and local paths are first class; fsspec's other backends
can be read from, untested. The S3 endpoint comes from AWS_ENDPOINT_URL alone.
"""

import contextlib
import json
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import fsspec

from pipeline.errors import AccessDeniedError, ObjectNotFoundError, StorageError

DEADLINE_SECONDS = 120.0
"""How long one call goes on trying while a server fails."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 10.0
PART_BYTES = 16 * 2**20
"""Longest ranged read. s3fs retries a body below 50 MiB; above, it leaves zero-filled files."""
JSON_BYTES = 256 * 2**20
"""Longest JSON object that is read: a manifest of 10^5 shards holds 30 MB."""

retries: Counter[str] = Counter()
"""Retried calls of this process by the class of what went wrong."""

_EXPIRED = ("ExpiredToken", "InvalidToken", "RequestExpired", "TokenRefreshRequired")
_DENIED = ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_local = threading.local()
Result = TypeVar("Result")


@dataclass(frozen=True)
class ObjectInfo:
    """One object: where it is, how many bytes, and what changes when its content does."""

    url: str
    size: int
    etag: str | None


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(url: str) -> str:
    """A local path as an absolute one without `file://`; any other URL as it is."""
    path = local_path(url)
    return url.rstrip("/") if path is None else str(path.absolute())


def local_path(url: str) -> Path | None:
    """The path of a local URL, else None."""
    if "://" not in url:
        return Path(url)
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment, for messages."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", "")) if parts.scheme else url


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes [start, end) of an object, all of it by default.

    Long ranges are read in parts, so that a failure costs one part. Raises `ObjectNotFoundError`,
    `AccessDeniedError`, or `StorageError` when the deadline has passed or the object is shorter.
    """
    path = local_path(url)
    if path is not None:
        return _read_local(path, start or 0, end)
    first = start or 0
    last = stat(url).size if end is None else end
    parts = []
    while first < last:
        part = _read_part(url, first, min(last, first + PART_BYTES))
        if not part:
            raise StorageError(f"{url}: ends at byte {first}, not at {last}. Was it replaced?")
        parts.append(part)
        first += len(part)  # A short answer is gone on with at its byte.
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_json(url: str) -> Any:
    """A JSON object of at most `JSON_BYTES`; raises `StorageError` when it is none."""
    size = stat(url).size
    if size > JSON_BYTES:
        raise StorageError(f"{url}: holds {size} bytes; JSON of at most {JSON_BYTES} is read.")
    try:
        return json.loads(read(url, 0, size))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{url}: is no JSON ({error}). It was not written whole.") from None


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys: the same value gives the same bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def stat(url: str) -> ObjectInfo:
    """Size and etag of an object; raises `ObjectNotFoundError`."""
    path = local_path(url)
    if path is not None:
        with _local_errors(url):
            status = path.stat()
        return ObjectInfo(url, status.st_size, _local_etag(status))
    info = _retried(url, lambda fs, key: fs.info(key, refresh=True))
    if info["type"] != "file":
        raise ObjectNotFoundError(f"{url}: is a folder, not an object.")
    return ObjectInfo(url, info["size"], info.get("ETag"))


def exists(url: str) -> bool:
    """Whether there is an object at this URL."""
    try:
        stat(url)
    except ObjectNotFoundError:
        return False
    return True


def list_objects(url: str) -> Iterator[ObjectInfo]:
    """Everything below a folder, sorted by URL; raises `ObjectNotFoundError` if there is none."""
    path = local_path(url)
    if path is not None:
        yield from _list_local(url, path)
        return
    found = _retried(url, lambda fs, key: fs.find(key, detail=True, refresh=True))
    if not found:
        raise ObjectNotFoundError(f"{url}: there is nothing here. Check the URL's bucket and path.")
    scheme = url.split("://", 1)[0]
    for key, info in sorted(found.items()):
        yield ObjectInfo(f"{scheme}://{key}", info["size"], info.get("ETag"))


def publish(url: str, data: bytes | Path) -> None:
    """Writes an object so that readers see the old one or the whole new one, never a part."""
    path = local_path(url)
    if path is None:
        if isinstance(data, Path):
            _retried(url, lambda fs, key: fs.put_file(str(data), key))
        else:
            _retried(url, lambda fs, key: fs.pipe_file(key, data))
        return
    with _temporary_beside(path, data) as scratch:
        scratch.replace(path)


def create_if_absent(url: str, data: bytes) -> bool:
    """Writes an object unless there is one; true for exactly one of many callers.

    S3 by If-None-Match, local by a hard link: of fsspec's own local `mode="create"` two writers
    won in 21 of 200 races.
    """
    path = local_path(url)
    if path is None:
        return bool(_retried(url, lambda fs, key: _create_remote(fs, key, data)))
    if path.exists():
        return False
    with _temporary_beside(path, data) as scratch:
        try:
            os.link(scratch, path)
        except FileExistsError:
            return False
    return True


def delete(url: str) -> None:
    """Removes an object; one that is absent is fine."""
    path = local_path(url)
    if path is not None:
        path.unlink(missing_ok=True)
        return
    with contextlib.suppress(ObjectNotFoundError):
        _retried(url, lambda fs, key: fs.rm_file(key))


def open_for_webdataset(url: str, mode: str = "rb", bufsize: int = -1, **_: Any) -> Any:
    """What `webdataset.gopen_schemes["s3"]` needs; see `pipeline.data.register_with_webdataset`."""
    return _filesystem(url).open(url, mode, cache_type="readahead", block_size=PART_BYTES)


def _read_part(url: str, start: int, end: int) -> bytes:
    part: bytes = _retried(url, lambda fs, key: fs.cat_file(key, start=start, end=end))
    return part


def _create_remote(fs: Any, key: str, data: bytes) -> bool:
    try:
        fs.pipe_file(key, data, mode="create")
    except FileExistsError:
        return False
    return True


def _filesystem(url: str, *, fresh: bool = False) -> Any:
    """This thread's filesystem for a URL: s3fs survives neither forks nor many loops in one."""
    scheme = url.split("://", 1)[0]
    cache: dict[tuple[int, str], Any] = _local.__dict__.setdefault("filesystems", {})
    key = (os.getpid(), scheme)
    if fresh or key not in cache:
        options: dict[str, Any] = {"skip_instance_cache": True}
        if scheme in ("s3", "s3a"):
            # Our own loop retries: theirs below it would make 25 requests of 5.
            options["use_listings_cache"] = False
            options["config_kwargs"] = {
                "retries": {"max_attempts": 1, "mode": "standard"},
                "connect_timeout": 5,
                "read_timeout": 20,
            }
        cache[key] = fsspec.filesystem(scheme, **options)
    return cache[key]


def _retried(url: str, call: Callable[[Any, str], Result]) -> Result:
    """`call(filesystem, key)`, again with full jitter until it works or the deadline has passed."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    wait, fresh = FIRST_WAIT_SECONDS, False
    while True:
        try:
            fs = _filesystem(url, fresh=fresh)
            return call(fs, fs._strip_protocol(url))
        except FileExistsError:
            raise
        except Exception as error:  # What a backend may raise has no common root.
            kind = _kind(error)
            name = without_secrets(url)
            if kind == "not_found":
                raise ObjectNotFoundError(f"{name}: does not exist.") from None
            if kind == "denied":
                raise AccessDeniedError(
                    f"{name}: access denied. Check the credentials in the environment, and "
                    "the bucket's name and policy."
                ) from None
            if kind == "bug":
                raise
            if time.monotonic() > deadline:
                raise StorageError(
                    f"{name}: failed for {DEADLINE_SECONDS:.0f} s, at last with "
                    f"{type(error).__name__}. Is the storage up, and AWS_ENDPOINT_URL right?"
                ) from error
            retries[kind] += 1
            fresh = kind == "expired"
            time.sleep(random.uniform(0, wait))  # noqa: S311  jitter needs no secrecy
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _kind(error: BaseException) -> str:
    """The class of a backend's error: what decides whether to try again."""
    code = ""
    cause: BaseException | None = error
    while cause is not None:  # s3fs hides botocore's error behind an OSError.
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code", "") or code
        cause = cause.__cause__ or cause.__context__
    if code in _EXPIRED:
        return "expired"
    if isinstance(error, FileNotFoundError) or code in ("NoSuchKey", "NoSuchBucket", "404"):
        return "not_found"
    if isinstance(error, PermissionError) or code in _DENIED or code == "403":
        return "denied"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "timeout"
    if isinstance(error, OSError) or type(error).__module__.startswith(("aiohttp", "botocore")):
        return "reset" if "Connection" in type(error).__name__ else "server"
    return "bug"


def _read_local(path: Path, start: int, end: int | None) -> bytes:
    with _local_errors(str(path)), path.open("rb") as file:
        file.seek(start)
        data = file.read() if end is None else file.read(end - start)
    if end is not None and len(data) < end - start:
        raise StorageError(f"{path}: ends at byte {start + len(data)}, wanted up to {end}.")
    return data


def _list_local(url: str, root: Path) -> Iterator[ObjectInfo]:
    if not root.is_dir():
        raise ObjectNotFoundError(f"{url}: there is no such folder.")
    # By the whole path, as object storage sorts: `a-b/x` comes before `a/x`.
    found = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    for path in sorted(found, key=str):
        if not path.name.startswith(_SCRATCH):
            status = path.stat()
            yield ObjectInfo(str(path), status.st_size, _local_etag(status))


_SCRATCH = ".writing-"


@contextlib.contextmanager
def _temporary_beside(path: Path, data: bytes | Path) -> Iterator[Path]:
    """A durable file with these bytes in the folder of `path`; gone after the block."""
    with _local_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_SCRATCH, dir=path.parent)
        scratch = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while block := source.read(PART_BYTES):
                            file.write(block)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.chmod(0o644)
            yield scratch
        finally:
            scratch.unlink(missing_ok=True)


@contextlib.contextmanager
def _local_errors(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise ObjectNotFoundError(f"{url}: does not exist.") from None
    except PermissionError:
        raise AccessDeniedError(f"{url}: permission denied for this user.") from None
    except OSError as error:
        raise StorageError(f"{url}: {error.strerror}.") from error


def _local_etag(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"
