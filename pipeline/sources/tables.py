"""Tables as sources: rows that hold an image (Parquet, Arrow), or name one (also CSV, JSON lines).

Rows with images are read a row group at a time, and packed in groups: a group is read once or
twice, not once for each of its rows.
"""

import json
import posixpath
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.data.image_kinds import kind_of
from pipeline.errors import AccessDeniedError, DatasetError, ObjectNotFoundError, SampleError
from pipeline.sources.annotations import (
    LABEL_COLUMNS,
    Annotation,
    annotation_of,
    read_annotations,
    text_of,
)
from pipeline.sources.source_file import MAX_FILE_BYTES, SourceFile
from pipeline.sources.table_rows import arrow_batches, is_table, open_arrow

_STAT_THREADS = 32
"""Each waits for storage to say a size."""
_STAT_ROWS = 4096
"""Asked for together, and told in the table's order."""
_GROUPS_KEPT = 2
"""Row groups in memory, which may be large: rows are read in order, so two are enough."""
_BYTES, _PATH = "bytes", "path"


@dataclass(frozen=True)
class TableRow:
    """One row: its image's bytes, and what its other columns say."""

    data: bytes
    annotation: Annotation


@dataclass(frozen=True)
class _Layout:
    """Which columns of a table hold what; `classes` names the numbers of the label's column."""

    image: str
    label: str | None
    classes: tuple[str, ...]
    dropped: tuple[str, ...]


def image_rows(
    url: str, info: storage.ObjectInfo, prefix: str, named: str | None
) -> Iterator[SourceFile] | None:
    """The rows of a table that holds images, None for any other table.

    `named` is the image's column, where the user says so. A row's path is the table's without
    suffix, then its number.
    """
    try:
        layout = _layout(url, info.etag or "", named)
    except _arrow_errors() as error:
        raise DatasetError(f"{storage.shown(url)}: can't be read ({error}). Is it whole?") from None
    return None if layout is None else _image_rows(info, prefix, layout)


def _image_rows(info: storage.ObjectInfo, prefix: str, layout: _Layout) -> Iterator[SourceFile]:
    first = 0
    for group, size, labels in _groups(info, layout):
        for row, label in enumerate(labels):
            yield SourceFile(
                path=f"{prefix}/{first + row:08d}",
                url=info.url,
                size=size,
                etag=info.etag or "",
                offset=row,
                member=layout.image,
                inner=str(group),
                row_group=f"{prefix}#{group}",
                given_label=label,
            )
        first += len(labels)


def _groups(
    info: storage.ObjectInfo, layout: _Layout
) -> Iterator[tuple[int, int, list[str | None]]]:
    """Each row group: its number, the mean size of its rows in bytes, the label of each."""
    from pyarrow import parquet

    def named(values: list[Any]) -> list[str | None]:
        return [_label_of(value, layout.classes) for value in values]

    if not info.url.lower().endswith(".parquet"):
        for number, batch in arrow_batches(info.url):
            size = batch.nbytes // max(batch.num_rows, 1)
            labels = batch[layout.label].to_pylist() if layout.label else [None] * batch.num_rows
            yield number, size, named(labels)
        return
    with parquet.ParquetFile(open_arrow(info.url)) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            size = group.total_byte_size // max(group.num_rows, 1)
            labels = [None] * group.num_rows
            if layout.label:
                labels = file.read_row_group(number, [layout.label])[layout.label].to_pylist()
            yield number, size, named(labels)


def _label_of(value: Any, classes: Sequence[str]) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(classes):
        return classes[value]
    return text_of(value)


@lru_cache(maxsize=256)
def _layout(url: str, etag: str, named: str | None) -> _Layout | None:
    import pyarrow as pa
    from pyarrow import parquet

    if url.lower().endswith(".parquet"):
        with parquet.ParquetFile(open_arrow(url)) as file:
            schema = file.schema_arrow
            head = next(file.iter_batches(1), None) if _binaries(schema) else None
    else:
        head = next((batch for _, batch in arrow_batches(url)), None)
        if head is None:
            return None
        schema = head.schema
    columns = [
        field.name
        for field in schema
        if (named is None and _is_image(field, head)) or field.name == named
    ]
    if not columns:
        return None
    if len(columns) > 1:
        raise DatasetError(
            f"{storage.shown(url)}: has images in the columns {', '.join(columns)}. Name the one "
            "to pack with `--image-column`."
        )
    lower = {name.lower(): name for name in schema.names}
    label = next((lower[name] for name in LABEL_COLUMNS if name in lower), None)
    dropped = tuple(f.name for f in schema if pa.types.is_binary(f.type) and f.name != columns[0])
    return _Layout(columns[0], label, _classes(schema, label), dropped)


def _binaries(schema: Any) -> list[str]:
    import pyarrow as pa

    return [
        field.name
        for field in schema
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    ]


def _is_image(field: Any, head: Any) -> bool:
    """A struct of bytes and path, as the `datasets` library has it, or bytes that are an image."""
    import pyarrow as pa

    if pa.types.is_struct(field.type):
        return {_BYTES, _PATH} <= {field.type.field(n).name for n in range(field.type.num_fields)}
    binary = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
    if not binary or head is None or not head.num_rows:
        return False
    value = head[field.name][0].as_py()
    return value is not None and kind_of(value[:64]) is not None


def _classes(schema: Any, label: str | None) -> tuple[str, ...]:
    """The class names that the `datasets` library keeps beside its numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def read_table_row(file: SourceFile, named: str | None) -> TableRow:
    """Bytes and annotation of a row that `image_rows` listed.

    Raises `SampleError` for one that has no bytes, or whose table is another one by now.
    """
    table, layout = _read_group(file.url, file.etag, int(file.inner), named)
    if file.offset >= table.num_rows:
        raise SampleError("changed", f"its row group holds {table.num_rows} rows now")
    row = table.slice(file.offset, 1).to_pylist()[0]
    image = row.pop(layout.image)
    data = image.get(_BYTES) if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        path = image.get(_PATH) if isinstance(image, dict) else image
        raise SampleError("missing", f"its row holds no bytes, but {path!r}")
    if len(data) > MAX_FILE_BYTES:
        raise SampleError("bomb", f"{len(data)} bytes, over {MAX_FILE_BYTES}")
    if layout.label:
        row[layout.label] = _label_of(row[layout.label], layout.classes)
    if isinstance(image, dict) and image.get(_PATH) and "file_name" not in row:
        row["file_name"] = PurePosixPath(image[_PATH]).name
    return TableRow(data, annotation_of(row))


_reading = threading.Lock()


def _read_group(url: str, etag: str, group: int, named: str | None) -> tuple[Any, _Layout]:
    with _reading:  # one thread reads, the others find it
        try:
            return _read_group_once(url, etag, group, named)
        except _arrow_errors() as error:
            raise SampleError("archive", f"row group {group} can't be read: {error}") from None


@lru_cache(maxsize=_GROUPS_KEPT)
def _read_group_once(url: str, etag: str, group: int, named: str | None) -> tuple[Any, _Layout]:
    import pyarrow as pa
    from pyarrow import parquet

    layout = _layout(url, etag, named)
    if layout is None:
        raise SampleError("changed", "its table holds no images any more")
    if url.lower().endswith(".parquet"):
        with parquet.ParquetFile(open_arrow(url)) as file:
            if group >= file.metadata.num_row_groups:
                raise SampleError("changed", "its row group is gone")
            kept = [name for name in file.schema_arrow.names if name not in layout.dropped]
            return file.read_row_group(group, kept).combine_chunks(), layout
    for number, batch in arrow_batches(url):
        if number == group:
            return pa.Table.from_batches([batch]).drop_columns(list(layout.dropped)), layout
    raise SampleError("changed", "its record batch is gone")


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow as pa

    return (pa.ArrowException, OSError)


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
            yield from pool.map(
                lambda row: _listed(row.path, row.annotation, folder, prefixes), batch
            )


def _listed(path: str, annotation: Annotation, folder: str, prefixes: Sequence[str]) -> SourceFile:
    target = _target(path, folder)
    text = annotation.to_text()
    prefix = next((p for p in prefixes if target.startswith(f"{p}/")), None)
    if prefix is None:
        return SourceFile(
            path, target, 0, "", status="rejected", reason="outside",
            message=f"{path!r} lies below none of {', '.join(map(storage.shown, prefixes))}",
        )  # fmt: skip
    relative = target.removeprefix(f"{prefix}/")
    try:
        info = storage.stat(target)
    except (ObjectNotFoundError, AccessDeniedError) as error:
        return SourceFile(
            relative, target, 0, "", status="rejected", reason="missing", message=str(error)
        )
    return SourceFile(
        relative, target, info.size, info.etag or "", given_label=annotation.label, annotation=text
    )


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


def holds_images(url: str, named: str | None) -> bool:
    """Whether a source that is a table holds images itself, instead of naming them."""
    info = storage.stat(url)
    return is_table(url) and image_rows(url, info, "", named) is not None
