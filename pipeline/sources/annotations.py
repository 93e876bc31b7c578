"""Labels and captions from a table beside the images: CSV, JSON lines, Parquet or Arrow.

One column names the image (its path below the source, with or without suffix); `label` (or `class`)
and `caption` (or `text`) mean what they say, and any other column goes into the sample's json.
"""

import base64
import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.data.image_kinds import kind_of
from pipeline.data.keys import without_suffix
from pipeline.errors import DatasetError
from pipeline.json_value import Json
from pipeline.sources.table_rows import Row, read_rows
from pipeline.storage.documents import MOST_DIGITS

PATH_COLUMNS = (
    "path", "file", "file_name", "filename", "file_path", "filepath", "image", "image_path",
    "img_path", "key", "url", "uri", "image_url",
)  # fmt: skip
LABEL_COLUMNS = ("label", "class")
CAPTION_COLUMNS = ("caption", "text")
_MOST_EMPTY = 10**5
"""Rows that name nothing, each of which is told: a file of 5 KB may have 10^9 of them."""
_TOO_LARGE = 10**MOST_DIGITS
"""For a number in a dataset's JSON."""
_MOST_PATH = 255
"""Longer than any name: only such a text can be an image."""
COLUMN, KEPT_AS, WITHOUT = "column ", " kept as ", " without its bytes"
"""What columns are counted under that no sample has as the table has them."""
OWN_PATH = "path"
"""Of what lies beside a sample: where it came from. A table's column of this name has another."""
TEXT_COLUMNS = frozenset((*PATH_COLUMNS, *LABEL_COLUMNS, *CAPTION_COLUMNS))


@dataclass(frozen=True)
class Annotation:
    """What a table says of one image; of several captions the first stands alone as text, too."""

    label: str | None = None
    caption: str | list[str] | None = None
    others: Json = field(default_factory=dict)

    def to_text(self) -> str:
        """JSON; `from_text` is its inverse."""
        return json.dumps([self.label, self.caption, dict(self.others)], ensure_ascii=False)

    def beside(self, within: "Annotation") -> "Annotation":
        """Both, of one image: what this one says counts before what the image's own row says."""
        caption = within.caption if self.caption is None else self.caption
        return Annotation(self.label or within.label, caption, {**within.others, **self.others})

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of what it says; "" where it says nothing."""
        return digest_of_text(self.to_text())

    @staticmethod
    def from_text(text: str) -> "Annotation":
        """From what `to_text` gave; "" says nothing."""
        return Annotation(*json.loads(text)) if text else Annotation()


def digest_of_text(text: str) -> str:
    """`Annotation.digest` of what `to_text` gave; "" for ""."""
    says = text and text != _SILENT
    return hashlib.sha256(text.encode()).hexdigest()[:16] if says else ""


_SILENT = Annotation().to_text()


@dataclass(frozen=True)
class AnnotationRow:
    """One row of a table: which image it means, as written there, and what it says."""

    number: int
    """From 1 on."""
    path: str
    """"" where its cell is empty."""
    annotation: Annotation
    changed: tuple[str, ...] = ()
    """Columns whose bytes it lacks, as counted: JSON holds none."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.path or f"row {self.number}, without a path"


def read_annotations(url: str) -> Iterator[AnnotationRow]:
    """The rows of a table in order. Raises `DatasetError` for one that can't be used."""
    empty = 0
    for number, row in enumerate(read_rows(url, TEXT_COLUMNS), 1):
        columns = {name.lower(): name for name in row}
        path_column = _first(columns, PATH_COLUMNS)
        if path_column is None:
            signs = [sign for sign in ";|\t" if len(row) == 1 and sign in next(iter(row))]
            split = f" Is it split by {signs[0]!r}? Save it with commas." if signs else ""
            raise DatasetError(
                f"{storage.shown(url)}: has the columns {', '.join(row)}; one of "
                f"{', '.join(PATH_COLUMNS)} must name the image.{split}"
            )
        _check_path(row[path_column], f"{storage.shown(url)}: its column {path_column!r}", number)
        path = (text_of(row[path_column]) or "").strip()
        empty += not path
        if empty > _MOST_EMPTY and 2 * empty > number:
            raise DatasetError(
                f"{storage.shown(url)}: its column {path_column!r} is empty in {empty:,} of its "
                f"first {number:,} rows. Leave those out, or name the images in it."
            )
        rest = {name: value for name, value in row.items() if name != path_column}
        yield AnnotationRow(number, path, annotation_of(rest), _without_bytes(rest))


def _without_bytes(row: Row) -> tuple[str, ...]:
    """The columns of a row whose bytes its annotation lacks; labels and captions are texts."""
    return tuple(
        f"{COLUMN}{name}{'' if isinstance(value, bytes) else WITHOUT}"
        for name, value in row.items()
        if _holds_bytes(value)
        and not (isinstance(value, bytes) and name.lower() in (*LABEL_COLUMNS, *CAPTION_COLUMNS))
    )


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_bytes, value.values()))
    return any(map(_holds_bytes, value[:1])) if isinstance(value, list) else type(value) is bytes


def counting_columns(
    rows: Iterable[AnnotationRow], counts: MutableMapping[str, int]
) -> Iterator[AnnotationRow]:
    """The rows; `counts` gets the columns of each that no sample has as they are."""
    for row in rows:
        for name in row.changed:
            counts[name] = counts.get(name, 0) + 1
        yield row


def _check_path(value: Any, where: str, number: int) -> None:
    """Raises `DatasetError` for what is an image, or a part of one, instead of its name."""
    kinds = {bytes: "bytes that begin as no image's file", list: "a list", dict: "a struct"}
    found = next((name for kind, name in kinds.items() if isinstance(value, kind)), "")
    if isinstance(value, str) and len(value) > _MOST_PATH and _is_base64(value):
        found = "an image as base64 text"
    if found:
        raise DatasetError(
            f"{where} holds {found} in row {number}, and no path. A table names its images by "
            "their paths (string), or holds their files' bytes (binary): write one of these."
        )


def _is_base64(text: str) -> bool:
    """Of an image, perhaps behind `data:image/png;base64,`."""
    try:
        return kind_of(base64.b64decode(text.rpartition(",")[2][:64])) is not None
    except ValueError:
        return False


def annotation_of(row: Row) -> Annotation:
    """What the columns of a row say of its image."""
    columns = {name.lower(): name for name in row}
    label, caption = _first(columns, LABEL_COLUMNS), _first(columns, CAPTION_COLUMNS)
    captions = row.get(caption) if caption else None
    if label is not None and isinstance(row[label], list | dict):
        label = None  # several labels are no class: a column like any other
    others = {name: value for name, value in row.items() if name not in (label, caption)}
    return Annotation(
        text_of(row.get(label)) if label else None,
        [text for text in map(text_of, captions) if text is not None]
        if isinstance(captions, list)
        else text_of(captions),
        _plain(others),
    )


def table_name(column: str) -> str:
    """What a table's column is called beside an image where the sample has such a one itself."""
    return f"table_{column}"


def join_captions(rows: Sequence[Annotation]) -> Annotation | None:
    """One annotation of all captions, in order, for rows that say the same but for these."""
    if any((row.label, row.others) != (rows[0].label, rows[0].others) for row in rows):
        return None
    captions: list[str] = []
    for row in rows:
        captions += row.caption if isinstance(row.caption, list) else filter(None, [row.caption])
    return Annotation(rows[0].label, list(dict.fromkeys(captions)), rows[0].others)


def normal(path: str) -> str:
    """One spelling of a path: NFC, `/` between its parts, nothing before the first of them."""
    path = unicodedata.normalize("NFC", path).replace("\\", "/").removeprefix("file://")
    return (
        PurePosixPath("/".join(part for part in path.split("/") if part != "."))
        .as_posix()
        .lstrip("/")
    )


def spellings(path: str, url: str, root: str, table: str = "", archive: str = "") -> Iterator[str]:
    """What a table may call an image at `path` below `root`, the likeliest first.

    A table among the images may name them from its own folder on; one beside the only `archive`
    (its path without suffix), as they are called in there.
    """
    folder, beside = root.rstrip("/").rpartition("/")[2], f"{table.rpartition('/')[0]}/"
    near = [url.removeprefix(beside)] if table and url.startswith(beside) else []
    if archive and path.startswith(f"{archive}/"):
        near.append(path.removeprefix(f"{archive}/"))
    for whole in (path, *near, f"{folder}/{path}", url):
        yield normal(whole)
        yield without_suffix(normal(whole))


def _first(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((columns[name] for name in names if name in columns), None)


def text_of(value: Any) -> str | None:
    """A cell as text, None for an empty one."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):  # As Spark and Impala of old write texts.
        return value.decode("utf-8", "backslashreplace") or None
    return str(value)


def _plain(row: Row) -> Json:
    """Values that JSON can hold; absent ones and bytes are left out, others become text."""
    kept = {name: _jsonable(value) for name, value in row.items() if not isinstance(value, bytes)}
    return {name: value for name, value in kept.items() if value is not None}


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and not -_TOO_LARGE < value < _TOO_LARGE:
        return str(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, list | tuple):
        return [_jsonable(each) for each in value]
    if isinstance(value, dict):
        plain = {
            str(name): _jsonable(each)
            for name, each in value.items()
            if not isinstance(each, bytes)
        }
        return plain or None
    return None if isinstance(value, bytes) else str(value)
