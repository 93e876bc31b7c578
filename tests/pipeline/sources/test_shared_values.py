"""Tables of a few kilobytes that stand for billions of rows, or for terabytes when written out."""

import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.errors import DatasetError, PipelineError
from pipeline.sources import annotations, table_rows
from pipeline.sources.annotations import read_annotations
from pipeline.sources.listing import list_sources
from pipeline.sources.table_rows import read_rows

BIG = b"a" * 2**20
ROWS = 4000


def written(path: Path, columns: dict[str, Any]) -> str:
    batch = pa.RecordBatch.from_arrays(list(columns.values()), list(columns))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    return str(path)


def paths(count: int) -> pa.Array:
    return pa.array([f"{number}.png" for number in range(count)])


def viewing(count: int, length: int = len(BIG)) -> pa.Array:
    """A column of texts that all are the first bytes of one buffer."""
    views = struct.pack("<i4sii", length, BIG[:4], 0, 0) * count
    buffers = [None, pa.py_buffer(views), pa.py_buffer(BIG)]
    return pa.Array.from_buffers(pa.string_view(), count, buffers)


def lists_of_one(count: int) -> pa.Array:
    starts, sizes = pa.array([0] * count, pa.int32()), pa.array([2**17] * count, pa.int32())
    return pa.ListViewArray.from_arrays(starts, sizes, pa.array([1.0] * 2**17))


def run_of(value: Any, rows: int) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int64()), pa.array([value]))


BOMBS = {
    "null rows": lambda: {"path": pa.nulls(2 * 10**9)},
    "a run of rows": lambda: {"path": run_of("a.png", 10**9)},
    "views of one text": lambda: {"path": paths(ROWS), "caption": viewing(ROWS)},
    "one text of a dictionary": lambda: {
        "path": paths(ROWS),
        "caption": pa.DictionaryArray.from_arrays(
            pa.array([0] * ROWS, pa.int16()), pa.array([BIG.decode()])
        ),
    },
    "one text of a large dictionary": lambda: {
        "path": paths(ROWS),
        "caption": pa.DictionaryArray.from_arrays(
            pa.array([0] * ROWS), pa.array([BIG], pa.large_binary())
        ),
    },
    "a run of a long text": lambda: {"path": paths(ROWS), "caption": run_of(BIG.decode(), ROWS)},
    "lists that are one": lambda: {"path": paths(ROWS), "caption": lists_of_one(ROWS)},
    "structs of views": lambda: {
        "path": paths(ROWS), "caption": pa.StructArray.from_arrays([viewing(ROWS)], ["bytes"]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(BOMBS))
@pytest.mark.parametrize(
    "read", [lambda url: list(read_rows(url, ())), lambda url: list(list_sources([url]))]
)
def test_rows_that_share_their_bytes_are_refused_before_they_are_written_out(
    tmp_path: Path, name: str, read: Any
) -> None:
    url = written(tmp_path / "x.arrow", BOMBS[name]())
    with pytest.raises(PipelineError, match=r"record batch (says that it has|of .* is .* GiB)"):
        read(url)


def test_rows_that_share_a_little_are_read(tmp_path: Path) -> None:
    few = pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 3), pa.array(["cat", "dog"]))
    columns = {
        "path": paths(9), "label": few, "caption": viewing(9, 20), "empty": pa.nulls(9),
        "run": run_of("x", 9), "flag": pa.array([True] * 9),
    }  # fmt: skip
    rows = list(read_rows(written(tmp_path / "x.arrow", columns), ()))
    assert [row["label"] for row in rows] == ["cat", "dog", None] * 3
    assert {(row["caption"], row["empty"], row["run"]) for row in rows} == {("a" * 20, None, "x")}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_line_without_end_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(table_rows, "_MOST_LINE", 1000)
    path = tmp_path / f"x.{suffix}"
    first = '{"path": "a"}' if suffix == "jsonl" else "path"
    path.write_text(f"{first}\n" + " " * 900 + "\n")
    if suffix == "jsonl":
        assert len(list(read_rows(str(path), ()))) == 1
    path.write_bytes(first.encode() + b"\n" + bytes(5000))
    with pytest.raises(DatasetError, match="line 2 has more than 1,000 characters"):
        list(read_rows(str(path), ()))


def test_whole_numbers_that_no_reader_takes_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f'{{"path": "a", "id": {"9" * 5000}, "n": 9223372036854775807, "m": -1}}\n')
    (row,) = read_annotations(str(path))
    assert row.annotation.others == {"id": "9" * 5000, "n": 2**63 - 1, "m": -1}
    table = pa.table({"path": ["a"], "id": pa.array([2**64 - 1], pa.uint64())})
    parquet.write_table(table, tmp_path / "x.parquet")
    (row,) = read_annotations(str(tmp_path / "x.parquet"))
    assert row.annotation.others == {"id": str(2**64 - 1)}


def test_a_table_that_names_nothing_is_refused_after_some_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "_MOST_EMPTY", 100)
    parquet.write_table(pa.table({"path": pa.nulls(10**5, pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(DatasetError, match="'path' is empty in 101 of its first 101 rows"):
        list(read_annotations(str(tmp_path / "x.parquet")))
