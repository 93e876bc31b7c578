"""Labels and captions from a table beside the images: CSV, JSON lines or Parquet.

One column names the image (its path below the source, with or without suffix); `label` (or `class`)
and `caption` (or `text`) mean what they say, and any other column goes into the sample's json.
"""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError

PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "key")
LABEL_COLUMNS = ("label", "class")
CAPTION_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class Annotation:
    """What a table says of one image."""

    label: str | None
    caption: str | None
    others: Mapping[str, Any]


def read_annotations(url: str) -> dict[str, Annotation]:
    """Annotations by path and by path without suffix. Raises `DatasetError` for a bad table."""
    table = _read_table(url)
    columns = {str(name).lower(): str(name) for name in table.column_names}
    path_column = _first(columns, PATH_COLUMNS)
    if path_column is None:
        raise DatasetError(
            f"{storage.shown(url)}: has the columns {', '.join(table.column_names)}; one of "
            f"{', '.join(PATH_COLUMNS)} must name the image."
        )
    label, caption = _first(columns, LABEL_COLUMNS), _first(columns, CAPTION_COLUMNS)
    found: dict[str, Annotation] = {}
    for row in table.to_pylist():
        path = str(row.pop(path_column))
        annotation = Annotation(
            _text(row.pop(label, None)), _text(row.pop(caption, None)), _plain(row)
        )
        if found.setdefault(path, annotation) != annotation:
            raise DatasetError(f"{storage.shown(url)}: names {path!r} twice, with other values.")
    return found


def annotation_of(annotations: Mapping[str, Annotation], path: str) -> Annotation | None:
    """The table's row for an image's path, by full path or without its suffix."""
    found = annotations.get(path)
    return found or annotations.get(str(PurePosixPath(path).with_suffix("")))


def check_matching(annotations: Mapping[str, Annotation], paths: Iterable[str], url: str) -> None:
    """Raises `DatasetError` when no row of the table meets any image."""
    paths = list(paths)
    if paths and not any(annotation_of(annotations, path) for path in paths):
        raise DatasetError(
            f"{storage.shown(url)}: none of its {len(annotations)} rows names an image of the "
            f"sources. It names {next(iter(annotations), 'nothing')!r}, the first image is "
            f"{paths[0]!r}: paths are relative to the source."
        )


def _read_table(url: str) -> Any:
    import pyarrow as pa
    from pyarrow import csv, json, parquet

    data = io.BytesIO(storage.read(url))
    suffix = PurePosixPath(url).suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            delimiter = "\t" if suffix == ".tsv" else ","
            return csv.read_csv(data, parse_options=csv.ParseOptions(delimiter=delimiter))
        if suffix in (".jsonl", ".ndjson"):
            return json.read_json(data)
        if suffix == ".parquet":
            return parquet.read_table(data)
    except pa.ArrowInvalid as error:
        raise DatasetError(f"{storage.shown(url)}: can't be read as a table: {error}.") from None
    raise DatasetError(f"{storage.shown(url)}: is none of .csv, .tsv, .jsonl, .parquet.")


def _first(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def _text(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Values that JSON can hold; absent ones are left out, others become text."""
    kept: dict[str, Any] = {}
    for name, value in row.items():
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            continue
        simple = isinstance(value, str | int | float | bool | list | dict)
        kept[name] = value if simple else str(value)
    return kept
