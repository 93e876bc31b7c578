"""Tables that name the inputs of a pack: paths or URLs, a row each, with what it says of them."""

import posixpath
from collections.abc import Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from urllib.parse import unquote

from pipeline import storage
from pipeline.data.image_kinds import raw_suffix
from pipeline.errors import AccessDeniedError, ObjectNotFoundError, SampleError
from pipeline.masking import secret_in
from pipeline.sources.annotations import AnnotationRow, counting_columns, read_annotations
from pipeline.sources.source_file import MAX_FILE_BYTES, SourceFile

_STAT_THREADS = 32
"""Each waits for storage to say a size."""
_STAT_ROWS = 4096
"""Asked for together, and told in the table's order."""
_TASK_ROWS = 32
"""Handed to a thread at once: a future for each row would cost more than a local file's size."""
_PART_BYTES, _PATH_BYTES = 255, 4096
"""NAME_MAX and PATH_MAX."""


def listed_inputs(
    url: str, below: Sequence[str], columns: MutableMapping[str, int]
) -> Iterator[SourceFile]:
    """The inputs that the rows of a table name, each with the annotation of its row.

    Relative paths begin at the table's folder. Nothing outside of that folder and of the prefixes
    in `below` is looked at. `columns` counts those that no sample has as they are.
    """
    folder = url.rpartition("/")[0]
    prefixes = _prefixes(below, folder)
    rows = counting_columns(read_annotations(url), columns)
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="stat") as pool:
        while batch := list(islice(rows, _STAT_ROWS)):
            some = (batch[first : first + _TASK_ROWS] for first in range(0, len(batch), _TASK_ROWS))
            for files in pool.map(lambda part: [_listed(row, url, prefixes) for row in part], some):
                yield from files


def _listed(row: AnnotationRow, url: str, prefixes: Sequence[str]) -> SourceFile:
    folder, _, table = url.rpartition("/")
    path, annotation, text = row.path, row.annotation, row.annotation.to_text()
    if not path:
        return SourceFile(
            f"{table}/row {row.number}", url, 0, "", status="rejected", reason="missing",
            message="its row names nothing",
        )  # fmt: skip
    target = _target(path, folder)
    relative = path
    try:
        relative = target.removeprefix(f"{_prefix_of(path, target, prefixes)}/")
        try:
            info = _stat(target)
        except SampleError:
            # As Windows writes paths: the annotations of a table are found by these, too.
            other = path.replace("\\", "/")
            if path.startswith("file://"):
                other = unquote(other)  # As RFC 8089 writes them.
            if other == path:
                raise
            return _listed(replace(row, path=other), url, prefixes)
    except SampleError as error:
        said = storage.shown(target)
        # The ledger would keep a secret for ever.
        names = (said, said) if error.reason == "secret" else (relative, target)
        return SourceFile(*names, 0, "", status="rejected", reason=error.reason, message=str(error))
    raw = raw_suffix(relative)
    if raw:
        return SourceFile(
            relative, target, info.size, info.etag or "", status="ignored", reason=raw,
            message="not a format that can be read here",
        )  # fmt: skip
    return SourceFile(
        relative, target, info.size, info.etag or "", given_label=annotation.label, annotation=text
    )


def read_named(path: str, table: str, below: Sequence[str]) -> bytes:
    """The bytes of what a row of the table at the URL `table` names, under the rules of lists.

    Raises `SampleError` for what is not there, not a file, or below none of the prefixes.
    """
    folder = table.rpartition("/")[0]
    target = _target(path, folder)
    _prefix_of(path, target, _prefixes(below, folder))
    info = _stat(target)
    if info.size > MAX_FILE_BYTES:
        raise SampleError("bomb", f"{info.size} bytes, over {MAX_FILE_BYTES}")
    try:
        with storage.staying():
            return storage.read(target, 0, info.size)
    except (ObjectNotFoundError, AccessDeniedError) as error:
        raise SampleError("missing", str(error)) from None


def _prefixes(below: Sequence[str], folder: str) -> list[str]:
    return [storage.absolute(prefix).rstrip("/") for prefix in (*below, folder)]


def _prefix_of(path: str, target: str, prefixes: Sequence[str]) -> str:
    """The prefix that the target lies below. Raises `SampleError` for none, and for a secret."""
    secret = secret_in(target, by_name=True)
    if secret is not None:
        raise SampleError(
            "secret", f"its address holds {secret}: list it without, or copy the images"
        )
    found = next((prefix for prefix in prefixes if target.startswith(f"{prefix}/")), None)
    # A server decodes what stands there; a file's or an object's name means itself.
    is_decoded = storage.protocol(target) not in ("file", "s3", "s3a", "gs", "gcs")
    if found is None or (is_decoded and storage.leads_out(target[len(found) :])):
        raise SampleError(
            "outside",
            f"{path!r} lies below none of {', '.join(map(storage.shown, prefixes))}: if rows may "
            "name what lies there, say so by `--below FOLDER`",
        )
    return found


def _stat(target: str) -> storage.ObjectInfo:
    """Raises `SampleError` where there is no such file."""
    try:
        return _found(target)
    except (ObjectNotFoundError, AccessDeniedError) as error:
        raise SampleError("missing", str(error)) from None


def _found(target: str) -> storage.ObjectInfo:
    long = any(len(part.encode()) > _PART_BYTES for part in target.split("/"))
    long = long or len(target.encode()) >= _PATH_BYTES
    if "\0" in target or (long and storage.local_path(target) is not None):
        raise ObjectNotFoundError(f"{target[:200]!r}: no file can be called so.")
    with storage.staying():
        return storage.stat(target)


def _target(path: str, folder: str) -> str:
    """The URL that a row means, without `.` and `..`."""
    if "://" in path:
        scheme, _, rest = path.partition("://")
        if scheme == "file":
            return posixpath.normpath(rest)
        return f"{scheme}://{posixpath.normpath(rest)}"
    if path.startswith("/") and "://" not in folder:
        return posixpath.normpath(path)
    scheme, sign, rest = folder.rpartition("://")
    return f"{scheme}{sign}{posixpath.normpath(posixpath.join(rest, path.lstrip('/')))}"
