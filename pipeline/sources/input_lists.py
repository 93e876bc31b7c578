"""Tables that name the inputs of a pack: paths or URLs, a row each, with what it says of them."""

import posixpath
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from pipeline import storage
from pipeline.errors import AccessDeniedError, ObjectNotFoundError
from pipeline.masking import secret_in
from pipeline.sources.annotations import AnnotationRow, read_annotations
from pipeline.sources.source_file import SourceFile

_STAT_THREADS = 32
"""Each waits for storage to say a size."""
_STAT_ROWS = 4096
"""Asked for together, and told in the table's order."""
_PART_BYTES, _PATH_BYTES = 255, 4096
"""NAME_MAX and PATH_MAX."""


def listed_inputs(url: str, below: Sequence[str]) -> Iterator[SourceFile]:
    """The inputs that the rows of a table name, each with the annotation of its row.

    Relative paths begin at the table's folder. Nothing outside of that folder and of the prefixes
    in `below` is looked at.
    """
    folder = url.rpartition("/")[0]
    prefixes = [storage.absolute(prefix).rstrip("/") for prefix in (*below, folder)]
    rows = read_annotations(url)
    with ThreadPoolExecutor(_STAT_THREADS, thread_name_prefix="stat") as pool:
        while batch := list(islice(rows, _STAT_ROWS)):
            yield from pool.map(lambda row: _listed(row, url, prefixes), batch)


def _listed(row: AnnotationRow, url: str, prefixes: Sequence[str]) -> SourceFile:
    folder, _, table = url.rpartition("/")
    path, annotation, text = row.path, row.annotation, row.annotation.to_text()
    if not path:
        return SourceFile(
            f"{table}/row {row.number}", url, 0, "", status="rejected", reason="missing",
            message="its row names nothing",
        )  # fmt: skip
    target = _target(path, folder)
    secret = secret_in(target, by_name=True)
    if secret is not None:
        # The ledger would keep it for ever.
        said = storage.shown(target)
        return SourceFile(
            said, said, 0, "", status="rejected", reason="secret",
            message=f"its address holds {secret}: list it without, or copy the images",
        )  # fmt: skip
    prefix = next((p for p in prefixes if target.startswith(f"{p}/")), None)
    if prefix is None:
        return SourceFile(
            path, target, 0, "", status="rejected", reason="outside",
            message=f"{path!r} lies below none of {', '.join(map(storage.shown, prefixes))}",
        )  # fmt: skip
    relative = target.removeprefix(f"{prefix}/")
    try:
        info = _stat(target)
    except (ObjectNotFoundError, AccessDeniedError) as error:
        return SourceFile(
            relative, target, 0, "", status="rejected", reason="missing", message=str(error)
        )
    return SourceFile(
        relative, target, info.size, info.etag or "", given_label=annotation.label, annotation=text
    )


def _stat(target: str) -> storage.ObjectInfo:
    long = any(len(part.encode()) > _PART_BYTES for part in target.split("/"))
    long = long or len(target.encode()) >= _PATH_BYTES
    if "\0" in target or (long and storage.local_path(target) is not None):
        raise ObjectNotFoundError(f"{target[:200]!r}: no file can be called so.")
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
