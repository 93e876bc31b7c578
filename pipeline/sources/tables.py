"""Tables whose rows hold images (Parquet, Arrow), as sources.

Rows are packed in groups, and a group is read forward, a few rows at a time: however large it is,
little of it is in memory.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

from pipeline import storage
from pipeline.data.image_kinds import HEAD_BYTES, kind_of, raw_suffix
from pipeline.errors import (
    DatasetError,
    ObjectChangedError,
    SampleError,
    UnreadableError,
    is_shortage,
)
from pipeline.sources.annotations import (
    CAPTION_COLUMNS,
    COLUMN,
    KEPT_AS,
    LABEL_COLUMNS,
    OWN_PATH,
    PATH_COLUMNS,
    WITHOUT,
    Annotation,
    annotation_of,
    table_name,
    text_of,
)
from pipeline.sources.column_kinds import (
    BYTES,
    has_bytes,
    holds_bytes,
    inside_list,
    is_binary,
    is_image,
    is_text,
)
from pipeline.sources.group_rows import GroupRows
from pipeline.sources.input_lists import read_named
from pipeline.sources.source_file import MAX_FILE_BYTES, SourceFile
from pipeline.sources.table_rows import (
    arrow_batches,
    is_parquet,
    is_table,
    open_parquet,
    refuse_doubled,
)
from pipeline.storage.tables import FAULTS

_GROUPS_KEPT = 2
"""Row groups in memory, which may be large: rows are read in order, so two are enough."""
_PATH = "path"


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
    changed: tuple[str, ...]
    """Which columns no sample has as they are, as counted."""


@dataclass(frozen=True)
class ImageRows:
    """The rows of a table, and which of its columns no sample has as they are, as counted."""

    files: Iterator[SourceFile]
    changed: tuple[str, ...]


def image_rows(
    url: str, info: storage.ObjectInfo, prefix: str, named: str | None
) -> ImageRows | None:
    """The rows of a table that holds images, None for any other table.

    `named` is the image's column, where the user says so. A row's path is the table's without
    suffix, then its number.
    """
    try:
        layout = _layout(url, info.etag or "", named)
    except FAULTS as error:
        if is_shortage(error):
            raise
        raise UnreadableError(
            f"{storage.shown(url)}: can't be read ({error}). Is it whole?"
        ) from None
    if layout is None:
        return None
    return ImageRows(_readable(url, _image_rows(info, prefix, layout)), layout.changed)


def _readable(url: str, rows: Iterator[SourceFile]) -> Iterator[SourceFile]:
    try:
        yield from rows
    except FAULTS as error:
        if is_shortage(error):
            raise
        raise UnreadableError(
            f"{storage.shown(url)}: can't be read ({error}). Is it whole?"
        ) from None


def _image_rows(info: storage.ObjectInfo, prefix: str, layout: _Layout) -> Iterator[SourceFile]:
    first, partition = 0, _partition(prefix)
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
                given_label=partition if label is None else label,
            )
        first += len(labels)


def _partition(prefix: str) -> str | None:
    """The label that the folders of a table say, as Hive and Spark write it: `label=cat/`."""
    pairs = (part.partition("=") for part in prefix.split("/")[:-1])
    said = [unquote(value) for name, _, value in pairs if name.lower() in LABEL_COLUMNS]
    return said[-1] if said and said[-1] not in ("", _NO_PARTITION) else None


_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""What these write where the column is null."""


def _groups(
    info: storage.ObjectInfo, layout: _Layout
) -> Iterator[tuple[int, int, list[str | None]]]:
    """Each row group: its number, the mean size of its rows in bytes, the label of each."""

    def named(values: list[Any]) -> list[str | None]:
        return [_label_of(value, layout.classes) for value in values]

    if not is_parquet(info.url):
        for number, batch in arrow_batches(info.url):
            size = batch.nbytes // max(batch.num_rows, 1)
            labels = batch[layout.label].to_pylist() if layout.label else [None] * batch.num_rows
            yield number, size, named(labels)
        return
    with open_parquet(info.url) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            size = group.total_byte_size // max(group.num_rows, 1)
            labels = [None] * group.num_rows
            if layout.label:
                labels = file.read_row_group(number, [layout.label])[layout.label].to_pylist()
            yield number, size, named(labels)


def _label_of(value: Any, classes: Sequence[str]) -> str | None:
    """A class by its name; `datasets` writes -1 for none."""
    if classes and isinstance(value, int) and not isinstance(value, bool):
        return classes[value] if 0 <= value < len(classes) else None
    return text_of(value)


@lru_cache(maxsize=256)
def _layout(url: str, etag: str, named: str | None) -> _Layout | None:
    import pyarrow as pa

    schema = _schema(url)
    if schema is None or (named is not None and named not in schema.names):
        return None
    refuse_doubled(schema.names, url)
    columns = [named] if named else _image_columns(url, schema)
    if not columns:
        return None
    if len(columns) > 1:
        raise DatasetError(
            f"{storage.shown(url)}: has images in the columns {', '.join(columns)}. Name the one "
            "to pack with `--image-column`."
        )
    image = schema.field(columns[0])
    _check_column(image, url)
    lower = {name.strip().lower(): name for name in schema.names}
    label = next((lower[name] for name in LABEL_COLUMNS if name in lower), None)
    if label is not None and pa.types.is_nested(schema.field(label).type):
        label = None  # several labels are no class: a column like any other
    caption = next((lower[name] for name in CAPTION_COLUMNS if name in lower), None)
    kept = {image.name, *(n for n in (label, caption) if n and is_binary(schema.field(n).type))}
    dropped = tuple(f.name for f in schema if has_bytes(f) and f.name not in kept)
    others = [f for f in schema if f.name not in (image.name, label, caption, *dropped)]
    changed = [f"{COLUMN}{name}" for name in dropped]
    changed += [f"{COLUMN}{f.name}{WITHOUT}" for f in others if holds_bytes(f.type)]
    if OWN_PATH in (f.name for f in others):
        changed.append(f"{COLUMN}{OWN_PATH}{KEPT_AS}{table_name(OWN_PATH)}")
    return _Layout(image.name, label, _classes(schema, label), dropped, tuple(changed))


def _check_column(image: Any, url: str) -> None:
    """Raises `DatasetError` for one whose values are neither images' bytes nor paths."""
    import pyarrow as pa

    if is_image(image) or is_binary(image.type) or is_text(image.type):
        return
    if inside_list(image) is not None and not pa.types.is_primitive(image.type.value_type):
        what = "lists of images. Write a row for each image."
    else:
        what = f"{image.type}, and no image's file. Write its bytes (binary) or its path (string)."
    raise DatasetError(f"{storage.shown(url)}: the column {image.name} holds {what}")


def _schema(url: str) -> Any:
    """None for a stream without a single batch."""
    if is_parquet(url):
        with open_parquet(url) as file:
            return file.schema_arrow
    return next((batch.schema for _, batch in arrow_batches(url)), None)


def _image_columns(url: str, schema: Any) -> list[str]:
    """Structs of bytes and path, as the `datasets` library has them, and bytes that are an image.

    One that holds lists of such counts only where nothing else does.
    """
    unsure = [f.name for f in schema if is_binary(f.type)]
    found = {f.name for f in schema if is_image(f)} | _with_images(url, unsure)
    if found:
        return [name for name in schema.names if name in found]
    lists = {f.name: inside for f in schema if (inside := inside_list(f)) is not None}
    unsure = [name for name, inside in lists.items() if is_binary(inside.type)]
    sure = [name for name, inside in lists.items() if is_image(inside)]
    return sure or sorted(_with_images(url, unsure))


def _with_images(url: str, columns: list[str]) -> set[str]:
    """Which of these columns of bytes hold an image among their first values."""
    if not columns:
        return set()
    found: set[str] = set()
    for batch in _first_batches(url, columns):
        for name in columns:
            values = (_first_of(value.as_py()) for value in batch[name])
            if any(value and kind_of(value[:HEAD_BYTES]) for value in values):
                found.add(name)
        if found:
            break
    return found


def _first_batches(url: str, columns: list[str]) -> Iterator[Any]:
    """The first values of these columns, a few rows at a time."""
    with ExitStack() as cleanup:
        if is_parquet(url):
            file = cleanup.enter_context(open_parquet(url))
            batches = file.iter_batches(_LOOKED_AT_ONCE, columns=columns)
        else:
            batches = (batch.slice(0, _MOST_LOOKED_AT) for _, batch in arrow_batches(url))
        looked = 0
        for batch in batches:
            yield batch
            # Images may begin behind thousands of rows that have none.
            there = [len(batch[name]) - batch[name].null_count for name in columns]
            looked += max(1, *there)
            if looked >= _MOST_LOOKED_AT:
                break


def columns_of_bytes(url: str) -> list[str]:
    """Of a table without images that names none either: its columns of bytes that are no texts."""
    schema = _schema(url)
    if schema is None or any(f.name.lower() in PATH_COLUMNS and is_text(f.type) for f in schema):
        return []
    left = [f.name for f in schema if is_binary(f.type)]
    for batch in _first_batches(url, left) if left else ():
        left = [name for name in left if not _is_spelled(batch[name])]
        if not left:
            break
    return left


def _is_spelled(values: Any) -> bool:
    """Whether the first value is a text in UTF-8, as Spark writes these."""
    first = next((value for value in values.to_pylist() if value), None)
    try:
        return first is not None and first.decode().isprintable()
    except UnicodeDecodeError:
        return False


_LOOKED_AT_ONCE, _MOST_LOOKED_AT = 8, 1024
"""Values: the first may be empty, or broken."""


def _first_of(value: Any) -> bytes | None:
    """Of a list of bytes the first that are there."""
    return next(filter(None, value), None) if isinstance(value, list) else value


def _classes(schema: Any, label: str | None) -> tuple[str, ...]:
    """The class names that the `datasets` library keeps beside its numbers."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def read_table_row(file: SourceFile, named: str | None, below: Sequence[str] = ()) -> TableRow:
    """Bytes and annotation of a row that `image_rows` listed.

    A row that holds a path in place of bytes is read from there, if that is below one of `below`
    or the table's folder.

    Raises `SampleError` for one that has no bytes, or whose table is another one by now.
    """
    group = int(file.inner)
    try:
        layout = _layout(file.url, file.etag, named)
        if layout is None:
            raise SampleError("changed", "its table holds no images any more")
        found = _rows_of(file.url, file.etag, group, layout).take(file.offset)
    except UnicodeDecodeError as error:
        raise SampleError("corrupt", f"a text of its row is not UTF-8: {error}") from None
    except ObjectChangedError as error:
        raise SampleError("changed", f"{error} `--append` reads it again.") from None
    except FAULTS as error:
        if is_shortage(error):
            raise
        raise SampleError("archive", f"row group {group} can't be read: {error}") from None
    if found is None:
        raise SampleError("changed", f"its row group has no row {file.offset} any more")
    row = dict(found)
    image = row.pop(layout.image)
    data = image.get(BYTES) if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        path = image.get(_PATH) if isinstance(image, dict) else image
        if not isinstance(path, str) or not path:
            raise SampleError("missing", "its row holds neither bytes nor a path")
        try:
            data = read_named(path, file.url, below)
        except SampleError as error:
            raise SampleError(error.reason, f"its row holds no bytes, but {error}") from None
    said = image.get(_PATH) if isinstance(image, dict) else ""
    if said and raw_suffix(said) and kind_of(data[:HEAD_BYTES]) == "tiff":
        raise SampleError(
            "unsupported", f"{said!r} is a camera's raw file: a small copy alone could be read"
        )
    if len(data) > MAX_FILE_BYTES:
        raise SampleError("bomb", f"{len(data)} bytes, over {MAX_FILE_BYTES}")
    if layout.label:
        row[layout.label] = _label_of(row[layout.label], layout.classes)
    if isinstance(image, dict) and image.get(_PATH) and "file_name" not in row:
        row["file_name"] = image[_PATH].rpartition("/")[2]
    return TableRow(data, annotation_of({name.strip(): value for name, value in row.items()}))


@lru_cache(maxsize=_GROUPS_KEPT)
def _rows_of(url: str, etag: str, group: int, layout: _Layout) -> GroupRows:
    return GroupRows(url, etag, group, layout.dropped)


def holds_images(url: str, named: str | None) -> bool:
    """Whether a source that is a table holds images itself, instead of naming them.

    Raises `DatasetError` for one without the column `named`.
    """
    if not is_table(url):
        return False
    found = image_rows(url, storage.stat(url), "", named) is not None
    if named and not found:
        raise DatasetError(
            f"{storage.shown(url)}: has no column {named!r} (`--image-column`), but "
            f"{', '.join(_schema(url).names)}."
        )
    return found
