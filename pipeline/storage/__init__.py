"""URLs in, bytes out: the only room that knows fsspec and S3.

Plain paths and `s3://` are first class: read, listed, replaced atomically, created exactly once.
Any other fsspec URL (`gs://`, `https://`, `memory://` ...) can be read and listed, untested.
The S3 endpoint comes from `AWS_ENDPOINT_URL` alone, credentials from the process's environment.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any

from pipeline.errors import ObjectChangedError, ObjectNotFoundError, StorageError
from pipeline.json_value import Json
from pipeline.masking import one_line
from pipeline.storage import local, other, s3
from pipeline.storage.documents import (
    DocumentKind,
    canonical_json,
    checksum_of,
    parse_json,
    unique_keys,
)
from pipeline.storage.neighbours import names_beside, near, refuse_file_above
from pipeline.storage.other import staying
from pipeline.storage.ranged_file import RangedFile
from pipeline.storage.retry import (
    LOOK,
    RetryPolicy,
    retry_counts,
    retry_policy,
    set_retry_policy,
)
from pipeline.storage.temporary import private_folder, temporary_folder
from pipeline.storage.urls import (
    Place,
    absolute,
    below,
    check_address,
    check_name,
    check_place,
    join,
    leads_out,
    local_path,
    named,
    not_opened,
    plain,
    protocol,
    removal,
    shown,
)

__all__ = [
    "LOOK",
    "DocumentKind",
    "ObjectInfo",
    "Place",
    "RetryPolicy",
    "StorageFile",
    "absolute",
    "below",
    "canonical_json",
    "check_address",
    "check_name",
    "check_place",
    "checksum_of",
    "create_if_absent",
    "delete",
    "delete_empty_folder",
    "exists",
    "join",
    "leads_out",
    "links",
    "list_objects",
    "local_path",
    "named",
    "names_beside",
    "near",
    "not_opened",
    "parse_json",
    "plain",
    "private_folder",
    "protocol",
    "publish",
    "read",
    "read_bounded",
    "read_document",
    "read_json",
    "refuse_file_above",
    "refuse_links",
    "removal",
    "retry_counts",
    "retry_policy",
    "scratch",
    "set_retry_policy",
    "shown",
    "stat",
    "staying",
    "temporary_folder",
    "unfinished",
    "unique_keys",
]

_JSON_BYTES = 2**28
"""A manifest of 10^9 samples needs 2^25; Python needs some 20 bytes for one of JSON."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its URL, its size in bytes, and a tag that changes when it is written again.

    The tag is S3's ETag; of a local file it is the time of its last change and its size.
    `modified`: that time in seconds since 1970, as a listing tells it; 0 where nobody does.
    """

    url: str
    size: int
    etag: str | None
    modified: float = field(default=0.0, compare=False)


def read(
    url: str, start: int | None = None, end: int | None = None, etag: str | None = None
) -> bytes:
    """Bytes [start, end) of an object, as a slice: fewer where it ends before.

    Retried with full jitter until a deadline, going on at the byte that was reached. With a tag of
    before, an object that has another one by now is an `ObjectChangedError`.
    """
    first = start or 0
    if end is not None and end <= first:
        return b""
    if (path := local_path(url)) is not None:
        return local.read(path, first, end, etag)
    if protocol(url) in ("s3", "s3a"):
        return s3.read(url, first, end, etag)
    data = other.read(url, first, end)
    if etag is not None:
        refuse_changed(url, etag)
    return data


def refuse_changed(url: str, etag: str) -> None:
    """Raises `ObjectChangedError` if an object has another tag by now; "" is one that has none."""
    if etag and stat(url).etag != etag:
        raise ObjectChangedError(f"{shown(url)}: has changed since it was listed.")


def read_json(url: str, limit_bytes: int = _JSON_BYTES) -> Any:
    """The value of a JSON object of at most `limit_bytes`."""
    return parse_json(read_bounded(url, limit_bytes), url)


def read_document(kind: DocumentKind, url: str, limit_bytes: int = _JSON_BYTES) -> Json:
    """The value of a document of ours, its checksum compared; see `DocumentKind.parse`."""
    return kind.parse(read_bounded(url, limit_bytes), url)


def read_bounded(url: str, limit_bytes: int) -> bytes:
    """All bytes of an object that may hold at most `limit_bytes`."""
    data = read(url, 0, limit_bytes + 1)
    if len(data) > limit_bytes:
        raise StorageError(f"{shown(url)}: holds more than {limit_bytes:,} bytes, too many for it.")
    return data


def stat(url: str) -> ObjectInfo:
    """Size and tag of one object; `ObjectNotFoundError` when there is none."""
    if (path := local_path(url)) is not None:
        try:
            status = path.stat()
        except OSError as error:
            raise local.explain(error, path, "looking it up") from None
        if path.is_dir():
            raise ObjectNotFoundError(f"{url}: is a folder, not a file.")
        local.check_regular(status, path)
        return ObjectInfo(url, status.st_size, local.version(status))
    if protocol(url) in ("s3", "s3a"):
        return ObjectInfo(url, *s3.stat(url))
    return ObjectInfo(url, *other.stat(url))


def exists(url: str) -> bool:
    """Whether there is an object (no folder) of this name."""
    try:
        stat(url)
    except ObjectNotFoundError:
        return False
    return True


def list_objects(url: str, *, dangling: bool = False) -> Iterator[ObjectInfo]:
    """Every object below a folder or prefix, recursively, sorted by URL; none is an error.

    Reads the listing page by page, so that any number of objects needs little memory. `dangling`:
    also local links that lead to nothing or to a folder that they lie in, with the size -1 and no
    tag, and FIFOs, sockets and devices, with the size -1 and a tag.
    """
    found = False
    for info in _list(url):
        if info.size >= 0 or dangling:
            found = True
            yield info
    if not found and not ((path := local_path(url)) is not None and path.is_dir()):
        raise ObjectNotFoundError(f"{shown(url)}: does not exist, or holds nothing. Check the URL.")


def _list(url: str) -> Iterator[ObjectInfo]:
    if (path := local_path(url)) is not None:
        for name, status in local.walk(path):
            if status is None:
                yield ObjectInfo(name, -1, None)
            elif not S_ISREG(status.st_mode):
                yield ObjectInfo(name, -1, local.version(status))
            else:
                yield ObjectInfo(
                    name, status.st_size, local.version(status), modified=status.st_mtime
                )
    elif protocol(url) in ("s3", "s3a"):
        for name, size, etag, modified in s3.list_keys(url):
            yield ObjectInfo(name, size, etag, modified=modified)
    else:
        for name, size, tag in other.walk(url):
            yield ObjectInfo(name, size, tag)


def publish(url: str, data: bytes | Path) -> None:
    """Writes or replaces an object at once: a reader sees the old one or the new one, whole.

    A `Path` made by `scratch(url)` is moved when the URL is local; any other file is copied.
    """
    if (path := local_path(url)) is not None:
        local.publish(path, data)
    elif protocol(url) in ("s3", "s3a"):
        s3.publish(url, data)
    else:
        other.refuse_writing(url)


def scratch(url: str) -> Path:
    """A path for a file that `publish(url, path)` will take: beside a local URL, else temporary.

    Its folder exists; the caller removes what it does not publish.
    """
    path = local_path(url)
    if path is None:
        return local.scratch(Path(tempfile.gettempdir()) / os.path.basename(url))
    path.parent.mkdir(parents=True, exist_ok=True)
    return local.scratch(path)


def unfinished(url: str, *, below: bool = True) -> list[ObjectInfo]:
    """Files in a local folder (and `below`) that somebody writes, or was killed while writing."""
    path = local_path(url)
    found = local.unfinished(path, below=below) if path is not None else ()
    return [ObjectInfo(name, status.st_size, local.version(status)) for name, status in found]


def create_if_absent(url: str, data: bytes) -> bool:
    """Creates an object unless there is one; True for exactly one of any number of callers."""
    if (path := local_path(url)) is not None:
        return local.create_if_absent(path, data)
    if protocol(url) in ("s3", "s3a"):
        return s3.create_if_absent(url, data)
    return other.refuse_writing(url)


def delete(url: str) -> None:
    """Removes an object; absent is fine."""
    if (path := local_path(url)) is not None:
        local.delete(path)
    elif protocol(url) in ("s3", "s3a"):
        s3.delete(url)
    else:
        other.refuse_writing(url)


def links(url: str, name: str = "") -> list[Path]:
    """Local links to folders on the way from `url` to `name` below it, and in that."""
    path = local_path(url)
    return [] if path is None else list(local.links(path, name))


def refuse_links(url: str, *names: str) -> None:
    """Raises `StorageError` for a link to a folder in one of these folders of `url`, or as one.

    For who is about to replace or remove what is listed there: where a link leads lies what belongs
    to something else. `url` itself may be a link: the user named it.
    """
    for name in names:
        for link in links(url, name):
            raise StorageError(
                f"{one_line(str(link))}: is a link to another folder, and nothing is written or "
                "removed through links. Remove that link, or put the folder itself in its place."
            )


def delete_empty_folder(url: str) -> None:
    """Removes a local folder that holds nothing; elsewhere there are none."""
    if (path := local_path(url)) is not None:
        local.delete_empty_folder(path)


class StorageFile(RangedFile):
    """An object as a seekable file of ranged reads; wrap it in a `BufferedReader`."""

    def __init__(self, url: str) -> None:
        super().__init__(partial(read, url), stat(url).size)
