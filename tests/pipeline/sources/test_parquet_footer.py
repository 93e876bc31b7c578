"""Footers of Parquet files that end a process, or take for ever, are refused before Arrow looks."""

import io
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.errors import DatasetError
from pipeline.sources.parquet_footer import MOST_LEVELS, check_footer
from pipeline.sources.table_rows import read_rows


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def group(children: int = 1, name: bytes = b"g") -> bytes:
    """A SchemaElement: repetition (3), name (4), num_children (5)."""
    kids = b"\x15" + varint(2 * children) if children else b""
    return b"\x35\x02" + b"\x18" + varint(len(name)) + name + kids + b"\0"


LEAF = b"\x15\x0c" + b"\x25\x02" + b"\x18\x05image" + b"\0"


def schema(levels: int) -> bytes:
    elements = [group()] * levels + [LEAF]
    return b"\xfc" + varint(len(elements)) + b"".join(elements)


def deep(levels: int, before: bytes = b"") -> bytes:
    meta = b"\x15\x02" + before + b"\x19" + schema(levels) + b"\x16\0" + b"\x19\x0c" + b"\0"
    return b"PAR1" + meta + struct.pack("<I", len(meta)) + b"PAR1"


def twice(levels: int) -> bytes:
    """The schema that counts is the last one, under its number written out."""
    meta = b"\x15\x02\x19" + schema(1) + b"\x16\0" + b"\x09\x04" + schema(levels) + b"\0"
    return b"PAR1" + meta + struct.pack("<I", len(meta)) + b"PAR1"


@pytest.mark.parametrize("make", [deep, twice])
@pytest.mark.parametrize("levels", [MOST_LEVELS + 1, 50_000])
def test_groups_in_groups_are_refused_in_one_line(tmp_path: Path, make: type, levels: int) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(make(levels))
    with pytest.raises(DatasetError, match="nested more than 200 levels deep"):
        list(read_rows(str(path), ()))


def test_what_is_let_pass_ends_no_process(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(deep(MOST_LEVELS - 1))
    read = "import sys; from pyarrow import parquet; parquet.ParquetFile(sys.argv[1])"
    ended = subprocess.run(
        [sys.executable, "-c", read, str(tmp_path / "x.parquet")], capture_output=True
    )
    assert ended.returncode in (0, 1), ended.stderr


@pytest.mark.parametrize(
    "meta",
    [b"\x15", b"\x15\x02\x19", b"\x19\xfc\xff\xff\xff\x7f", b"\x18\xff\xff\xff\xff\x0f", b"\x1d",
     b"\x15" + b"\xff" * 20, b"\x1c" * 5000, b"\x19\x19" * 5000, b"\x1b\xff\xff\xff\x7f\xcc"],
)  # fmt: skip
def test_a_footer_without_sense_is_refused(meta: bytes) -> None:
    data = b"PAR1" + meta + struct.pack("<I", len(meta)) + b"PAR1"
    with pytest.raises(ValueError, match="footer"):
        check_footer(io.BytesIO(data), len(data))


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_any_bytes_pass_or_are_refused(meta: bytes) -> None:
    data = b"PAR1" + meta + struct.pack("<I", len(meta)) + b"PAR1"
    with suppress(ValueError):
        check_footer(io.BytesIO(data), len(data))


def test_real_footers_pass(tmp_path: Path) -> None:
    inner: pa.DataType = pa.int8()
    for _ in range(20):
        inner = pa.list_(pa.struct([("x", inner)]))
    table = pa.table(
        {
            "deep": pa.nulls(3, inner), "map": pa.nulls(3, pa.map_(pa.string(), pa.int64())),
            "text": ["a", None, "b"], "time": pa.array([1, 2, 3], pa.timestamp("us", "UTC")),
            "decimal": pa.array([1, 2, 3]).cast(pa.decimal128(30, 2)),
            **{str(n): [1, 2, 3] for n in range(300)},
        }
    ).replace_schema_metadata({"huggingface": "x" * 999})  # fmt: skip
    for version in ("1.0", "2.6"):
        for page in ("1.0", "2.0"):
            path = tmp_path / "x.parquet"
            parquet.write_table(
                table, path, version=version, data_page_version=page, row_group_size=1,
                write_page_index=True, compression="zstd",
            )  # fmt: skip
            with path.open("rb") as file:
                check_footer(file, path.stat().st_size)
