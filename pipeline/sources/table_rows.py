"""Tables as rows, a batch at a time: CSV, TSV, JSON lines, Parquet, Arrow; text stays text."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from pipeline import storage
from pipeline.errors import DatasetError, UnreadableError, is_shortage
from pipeline.sources.arrow_sizes import check_batch
from pipeline.sources.parquet_footer import check_footer
from pipeline.storage.documents import MOST_DIGITS
from pipeline.storage.tables import FAULTS, refuse_bombs

TEXT_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
PARQUET_SUFFIXES = (".parquet", ".pq")
ARROW_SUFFIXES = (*PARQUET_SUFFIXES, ".arrow", ".feather", ".ipc")
_BATCH_ROWS = 4096
"""Of a table at a time in memory: rows are few bytes, but images stand in some."""
_MOST_FIELD_BYTES = 2**24
"""Of one cell: a caption or an embedding written as text."""

_MOST_LINE = 2**26
"""Of characters: four of the largest cells. A file without line breaks would be read as one."""
_MOST_LEVELS = 100
"""Of lists and objects inside of each other in a cell."""

Row = Mapping[str, Any]


def is_table(url: str) -> bool:
    """By its suffix: one whose rows may hold images."""
    return url.lower().endswith(ARROW_SUFFIXES)


def is_parquet(url: str) -> bool:
    """By its suffix."""
    return url.lower().endswith(PARQUET_SUFFIXES)


def is_list(url: str) -> bool:
    """By its suffix: one whose rows may name images."""
    return url.lower().endswith((*TEXT_SUFFIXES, *ARROW_SUFFIXES))


def read_rows(url: str, texts: Collection[str]) -> Iterator[Row]:
    """Each row as a dictionary, in order; columns named in `texts` (in lower case) stay text.

    Raises `DatasetError` for a table that can't be read.
    """

    suffix = PurePosixPath(url).suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            yield from _read_csv(url, "\t" if suffix == ".tsv" else ",", texts)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(url)
        elif suffix in ARROW_SUFFIXES:
            for batch in _arrow_batches(url):
                refuse_doubled([name.strip() for name in batch.schema.names], url)
                yield from batch.rename_columns([n.strip() for n in batch.schema.names]).to_pylist()
        else:
            raise DatasetError(
                f"{storage.shown(url)}: is none of .csv, .tsv, .jsonl, .parquet, .arrow."
            )
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{storage.shown(url)}: {_encoding_of(url)} at byte {error.start} of a piece "
            f"({error.object[error.start : error.start + 4]!r}). Save it as UTF-8."
        ) from None
    except FAULTS as error:
        if is_shortage(error):
            raise
        raise DatasetError(f"{storage.shown(url)}: can't be read as a table: {error}.") from None


def refuse_doubled(names: Sequence[str], url: str) -> None:
    """Raises `UnreadableError` for a table that has two columns of one name."""
    doubled = [name for name, number in Counter(names).items() if number > 1]
    if doubled:
        raise UnreadableError(
            f"{storage.shown(url)}: names the column {doubled[0]!r} twice. Write each one once."
        )


def _encoding_of(url: str) -> str:
    head = storage.read(url, 0, 4)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "is UTF-16, not UTF-8,"
    return "is not UTF-8 (ISO 8859-1 or Windows-1252?)"


def _text_file(url: str) -> io.TextIOWrapper:
    raw = io.BufferedReader(storage.StorageFile(url), 2**20)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="strict")


def _read_csv(url: str, delimiter: str, texts: Collection[str]) -> Iterator[Row]:
    """Twice through the file: a column is of numbers only if each of its cells is one."""
    kinds = _column_kinds(_csv_rows(url, delimiter), texts)
    for row in _csv_rows(url, delimiter):
        yield {
            name: None if text == "" else kinds.get(name, str)(text) for name, text in row.items()
        }


def _csv_rows(url: str, delimiter: str) -> Iterator[dict[str, str]]:
    csv.field_size_limit(_MOST_FIELD_BYTES)
    with _text_file(url) as file:
        reader = csv.reader(_lines(file, url), delimiter=delimiter, strict=True)
        rows = _told_lines(reader, url)
        header = [name.strip() for name in next(rows, [])]
        if len(set(header)) != len(header):
            raise DatasetError(f"{storage.shown(url)}: its header names a column twice: {header}.")
        for cells in rows:
            if not cells:
                continue
            if len(cells) != len(header):
                cure = (
                    f"Quote what holds a {delimiter!r}"
                    if len(cells) > len(header)
                    else (f"Write a {delimiter!r} for each that is empty")
                )
                raise DatasetError(
                    f"{storage.shown(url)}: line {reader.line_num} has {len(cells)} cells, the "
                    f"header {len(header)} ({', '.join(header)}). {cure}."
                )
            if "NaN" in cells:  # how pandas and R write a cell that is none
                cells = ["" if cell == "NaN" else cell for cell in cells]
            yield dict(zip(header, cells, strict=True))


def _told_lines(reader: Any, url: str) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DatasetError(
            f"{storage.shown(url)}: line {reader.line_num}: {error}. Is a quote left open?"
        ) from None


def _column_kinds(
    rows: Iterable[dict[str, str]], texts: Collection[str]
) -> dict[str, Callable[[str], Any]]:
    """int or float where every cell is how Python writes such a number: `00` and `1.10` are not."""
    kinds: dict[str, Callable[[str], Any]] = {}
    for number, row in enumerate(rows):
        if number == 0:
            kinds = {name: int for name in row if name.lower() not in texts}
        for name, kind in list(kinds.items()):
            text = row[name]
            if text == "" or (kind is int and _is_int(text)):
                continue
            if _is_int(text) or _is_float(text):
                kinds[name] = float
            else:
                del kinds[name]
    return kinds


def _is_int(text: str) -> bool:
    return len(text) < 19 and text.removeprefix("-").isdecimal() and str(int(text)) == text


def _is_float(text: str) -> bool:
    try:
        return repr(float(text)) == text.lower() and text.lower() not in ("nan", "inf", "-inf")
    except ValueError:
        return False


def _read_jsonl(url: str) -> Iterator[Row]:
    with _text_file(url) as file:
        for number, line in enumerate(_lines(file, url), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(
                    line, object_pairs_hook=storage.unique_keys, parse_int=_whole_or_text
                )
                if line.count("[") + line.count("{") > _MOST_LEVELS:
                    _refuse_deep(row)
                if "\\ud" in line.lower():
                    json.dumps(row, ensure_ascii=False).encode()  # raises for half a character
            except (ValueError, RecursionError) as error:
                raise DatasetError(
                    f"{storage.shown(url)}: line {number} is no JSON ({error})."
                ) from None
            if not isinstance(row, dict):
                raise DatasetError(
                    f"{storage.shown(url)}: line {number} is no JSON object: write one a line."
                )
            yield {name.strip(): value for name, value in row.items()}


def _whole_or_text(digits: str) -> int | str:
    """A number that no reader of datasets takes stays text, as in a CSV: nothing of it is lost."""
    return int(digits) if len(digits.removeprefix("-")) <= MOST_DIGITS else digits


def _lines(file: io.TextIOWrapper, url: str) -> Iterator[str]:
    """The lines of a text; raises `DatasetError` for one that is no line of any table."""
    number = 0
    while line := file.readline(_MOST_LINE + 1):
        number += 1
        if len(line) > _MOST_LINE:
            raise DatasetError(
                f"{storage.shown(url)}: line {number} has more than {_MOST_LINE:,} characters. Is "
                "it a table of text at all? Write one row a line."
            )
        yield line


def _refuse_deep(value: Any) -> None:
    """Raises `ValueError` for what is nested so deeply that no writer of JSON could spell it."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        level = [
            inside
            for each in level
            if isinstance(each, list | dict)
            for inside in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"nested more than {_MOST_LEVELS} levels deep")


def _arrow_batches(url: str) -> Iterator[Any]:
    if is_parquet(url):
        with open_parquet(url) as file:
            yield from file.iter_batches(_BATCH_ROWS)
        return
    for _, batch in arrow_batches(url):
        yield batch


def open_arrow(url: str) -> Any:
    """A file that pyarrow reads: mapped memory where it is local, else ranged reads."""
    import pyarrow as pa

    path = storage.local_path(url)
    if path is not None and path.is_file() and path.stat().st_size:
        return pa.memory_map(str(path))
    return pa.PythonFile(io.BufferedReader(storage.StorageFile(url), 2**20), "r")


def open_parquet(url: str, buffer_size: int = 0, only: int | None = None) -> Any:
    """A Parquet file whose columns unpack to what a table may hold, as its footer tells.

    `only`: one row group of which is read; opened for each of many, all cost their square.
    Raises `ValueError` for a column of a row group that is a bomb.
    """
    from pyarrow import parquet

    source = open_arrow(url)
    check_footer(source, source.size())
    file = parquet.ParquetFile(source, buffer_size=buffer_size)
    count = file.metadata.num_row_groups
    for number in range(count) if only is None else range(only, min(only + 1, count)):
        group = file.metadata.row_group(number)
        if group.total_byte_size <= _BOMB_BYTES:
            continue
        for column in (group.column(at) for at in range(group.num_columns)):
            packed, unpacked = column.total_compressed_size, column.total_uncompressed_size
            if unpacked > max(_BOMB_BYTES, _BOMB_RATIO * packed):
                file.close()
                raise ValueError(
                    f"the column {column.path_in_schema} of its row group {number} unpacks from "
                    f"{packed:,} to {unpacked:,} bytes, as no table of images or texts does"
                )
    return file


_BOMB_BYTES, _BOMB_RATIO = 2**29, 200
"""Zeros pack by a thousand and more; the same text over and over is a dictionary, and small."""


def arrow_batches(url: str, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """Each record batch of an Arrow file or stream, or `only` one, with its number.

    All of what is given is validated: an offset that lies reads foreign memory.
    """
    import pyarrow as pa

    with open_arrow(url) as file:
        refuse_bombs(file, file.size(), only)
        file.seek(0)
        wanted: Iterator[tuple[int, Any]]
        try:
            reader = pa.ipc.open_file(file)
        except pa.ArrowInvalid:
            file.seek(0)
            stream = enumerate(pa.ipc.open_stream(file))
            wanted = islice(stream, only, None if only is None else only + 1)
        else:
            count = reader.num_record_batches
            numbers = range(count) if only is None else range(only, min(only + 1, count))
            wanted = ((number, reader.get_batch(number)) for number in numbers)
        for number, batch in wanted:
            batch.validate(full=True)
            check_batch(batch)
            yield number, batch
