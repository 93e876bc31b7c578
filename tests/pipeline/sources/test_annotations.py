import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.sources.annotations import normal, read_annotations, spellings


def table(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> str:
    data = text.encode() if isinstance(text, str) else text
    storage.publish(str(tmp_path / name), data)
    return str(tmp_path / name)


def rows(url: str) -> Any:
    return {row.path: row.annotation for row in read_annotations(url)}


def test_labels_captions_and_other_columns_are_told_apart(tmp_path: Path) -> None:
    found = rows(table(tmp_path, "path,class,year\na/b.jpg,cat,1999\nc,dog,\n"))
    assert (found["a/b.jpg"].label, found["a/b.jpg"].others) == ("cat", {"year": 1999})
    assert (found["c"].label, found["c"].others) == ("dog", {})


@pytest.mark.parametrize("label", ["00", "1.10", "1e3", "true", "NA", "null", "-0", "0x10", " a"])
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_text_stays_text_in_every_kind_of_table(tmp_path: Path, label: str, suffix: str) -> None:
    if suffix == "parquet":
        sink = io.BytesIO()
        parquet.write_table(pa.table({"path": ["007"], "label": [label]}), sink)
        data = sink.getvalue()
    else:
        sign = {"csv": ",", "tsv": "\t"}.get(suffix)
        line = f'{{"path": "007", "label": "{label}"}}\n'
        data = (f"path{sign}label\n007{sign}{label}\n" if sign else line).encode()
    assert rows(table(tmp_path, data, f"t.{suffix}"))["007"].label == label


def test_header_names_are_stripped_and_numbers_keep_their_kind(tmp_path: Path) -> None:
    found = rows(table(tmp_path, "path , label, score,n,version\na,x,0.5,1,1.10\nb,y,2,,1.9\n"))
    assert found["a"].label == "x"
    assert found["a"].others == {"score": 0.5, "n": 1, "version": "1.10"}
    assert found["b"].others == {"score": 2.0, "version": "1.9"}
    assert isinstance(found["b"].others["score"], float)


def test_lists_and_several_captions_and_embeddings_stay_what_they_are(tmp_path: Path) -> None:
    sink = io.BytesIO()
    embeddings = pa.array([[0.25, -1.5]], pa.list_(pa.float32(), 2))
    columns = {"path": ["a"], "caption": [["one", "two"]], "tags": [[1, 2]], "e": embeddings}
    parquet.write_table(pa.table(columns), sink)
    found = rows(table(tmp_path, sink.getvalue(), "t.parquet"))["a"]
    assert found.caption == ["one", "two"]
    assert found.others == {"tags": [1, 2], "e": [0.25, -1.5]}


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"name,label\na,b\n", "t.csv", "must name the image"),
        (b"path,label\na,b\n", "t.xlsx", "none of"),
        ("path,label\na,caf\xe9\n".encode("latin-1"), "t.csv", "not UTF-8"),
        ("path,label\na,b\n".encode("utf-16"), "t.csv", "UTF-16"),
        (b"path,label\na,b,c\n", "t.csv", "line 2 has 3 cells"),
        (b"path;label\na;b\n", "t.csv", "must name the image"),
        (b"path,label,label\na,b,c\n", "t.csv", "twice"),
        (b"{}\nno\n", "t.jsonl", "must name|line 2"),
        (b"[1]\n", "t.jsonl", "no JSON object"),
        (b"nothing", "t.parquet", "can't be read"),
    ],
)
def test_a_table_that_can_not_be_used_says_why(
    tmp_path: Path, data: bytes, name: str, message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        rows(table(tmp_path, data, name))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_any_line_ends_and_a_byte_order_mark_are_taken(tmp_path: Path, ends: str) -> None:
    text = ends.join(["\ufeffpath,label", "a,x", '"b, c","y ""z"""', ""])
    found = rows(table(tmp_path, text))
    assert {path: row.label for path, row in found.items()} == {"a": "x", "b, c": 'y "z"'}


@pytest.mark.parametrize(
    "written",
    ["a/x.jpg", "./a/x.jpg", "/a/x.jpg", "data/a/x.jpg", "a\\x.jpg", "a/x", "/in/data/a/x.jpg",
     "file:///in/data/a/x.jpg", "a//x.jpg"],
)  # fmt: skip
def test_people_s_spellings_of_a_path_meet_its_image(written: str) -> None:
    assert normal(written) in set(spellings("a/x.jpg", "/in/data/a/x.jpg", "/in/data"))


def test_composed_and_decomposed_letters_meet() -> None:
    assert normal("cafe\u0301.jpg") in set(spellings("caf\u00e9.jpg", "/in/caf\u00e9.jpg", "/in"))


def test_another_image_is_not_met() -> None:
    assert normal("b/x.jpg") not in set(spellings("a/x.jpg", "/in/data/a/x.jpg", "/in/data"))
