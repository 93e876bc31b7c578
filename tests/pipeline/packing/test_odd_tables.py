"""What tables say, and what of it a sample can't have: told, counted, and never another's."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.pack import _summary
from pipeline.config import PackConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.commit import PackResult
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import packed
from tests.pipeline.packing.test_pack import config, contents, png, write
from tests.pipeline.packing.test_tables import read


def said(asked: PackConfig) -> tuple[PackResult, str]:
    """What came of a pack, and what people are told."""
    result = pack(asked)
    return result, "\n".join(_summary(asked, result))


def images(count: int) -> list[bytes]:
    return [png(n) for n in range(count)]


def test_a_list_s_labels_count_before_the_folders_that_stand_in_and_are_told(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {f"k/{n}.png": png(n) for n in range(3)})
    table = tmp_path / "in/l.csv"
    table.write_text("path,label\nk/0.png,a\nk/1.png,a\nk/2.png,\n")
    expected = {"k/0.png": "a", "k/1.png": "a", "k/2.png": "k"}
    for number, source in enumerate((str(table), [folder, str(table)], [str(table), folder])):
        result, text = said(config(source, tmp_path / f"out{number}"))
        assert {path: label for path, (_, label) in packed(result).items()} == expected
        assert "Without a label in a table: 1 input, labelled by the first folder's name." in text
        assert "Tables that were not read" not in text
    (tmp_path / "other.csv").write_text("path,label\nin/k/0.png,b\n")
    both = [str(table), str(tmp_path / "other.csv")]
    with pytest.raises(DatasetError, match=r"share 1 path|lies in two of the sources"):
        pack(config(both, tmp_path / "no"))


def test_annotations_leave_what_the_list_says_besides_and_tell_of_other_labels(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in", {f"{n}.png": png(n) for n in range(2)})
    table, beside = tmp_path / "in/l.csv", tmp_path / "t.csv"
    table.write_text("path,label,caption,year\n0.png,a,one,1999\n1.png,b,two,2000\n")
    beside.write_text("path,label,mood\n0.png,c,glad\n1.png,b,sad\n")
    result, text = said(config(str(table), tmp_path / "out", annotations=str(beside)))
    columns = read(Dataset.open(result.dataset), "path", "label", "caption", "year", "mood")
    assert sorted(columns.values()) == [
        ["0.png", "c", "one", 1999, "glad"], ["1.png", "b", "two", 2000, "sad"],
    ]  # fmt: skip
    assert result.table.relabelled == 1
    assert "Of 1 input the list or table that brought them in says another label" in text


def test_several_labels_of_a_table_are_a_column_and_no_folder_s_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {f"k/{n}.png": png(n) for n in range(2)})
    (tmp_path / "t.jsonl").write_text('{"path": "k/0.png", "label": ["a", "b"]}\n')
    result = pack(config(folder, tmp_path / "out", annotations=str(tmp_path / "t.jsonl")))
    labels = {path: label for path, (_, label) in packed(result).items()}
    assert labels == {"k/0.png": ["a", "b"], "k/1.png": "k"}
    assert result.found is not None
    assert (result.found.labels, result.found.unlabelled) == ({"k": 1}, 1)


def test_a_column_called_path_is_kept_under_another_name_and_told(tmp_path: Path) -> None:
    table = pa.table({"image": images(2), "path": ["x/a.png", "x/b.png"], " Label ": ["u", "v"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    result, text = said(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    columns = read(Dataset.open(result.dataset), "path", "table_path", "label")
    assert sorted(columns.values()) == [
        ["t/00000000", "x/a.png", "u"], ["t/00000001", "x/b.png", "v"],
    ]  # fmt: skip
    assert "path kept as table_path (2 rows)." in text
    assert "Beside them" not in text


BYTES: dict[str, Any] = {
    "city": pa.array([b"Berlin"] * 2),
    "hash": pa.array([b"x" * 16] * 2, pa.binary(16)),
    "masks": [{"a": b"q", "b": 1}] * 2,
}


def test_bytes_that_a_sample_can_not_have_are_told_of_every_kind_of_table(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(2)})
    for name, columns in (
        ("images.parquet", {"image": images(2)}), ("list.parquet", {"path": ["0.png", "1.png"]}),
    ):  # fmt: skip
        parquet.write_table(pa.table({**columns, **BYTES}), tmp_path / "in" / name)
    lost = {"column city": 2, "column hash": 2, "column masks without its bytes": 2}
    line = "city left out (2 rows); hash left out (2 rows); masks without its bytes (2 rows)."
    of_images = {"image_column": "image"}
    for number, (source, options) in enumerate((
        (f"{folder}/images.parquet", of_images), (f"{folder}/list.parquet", {}),
        (f"{folder}/*.png", {"annotations": f"{folder}/list.parquet"}),
    )):  # fmt: skip
        result, text = said(config(source, tmp_path / f"out{number}", **options))
        assert dict(result.counts.others) == lost
        assert line in text


def test_a_table_of_bytes_that_are_no_images_is_counted_and_images_may_begin_late(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {"a.png": png(5)})
    raw = pa.table({"image": [b"8BPS\0\1" + bytes(60)] * 3, "label": list("abc")})
    parquet.write_table(raw, tmp_path / "in/psd.parquet")
    texts = pa.table({"id": [b"a1", b"b2"]})  # as Spark writes them
    parquet.write_table(texts, tmp_path / "in/t.parquet")
    late = pa.table({"image": pa.array([None] * 1500 + images(2), pa.binary())})
    parquet.write_table(late, tmp_path / "in/late.parquet")
    result = pack(config(folder, tmp_path / "out"))
    assert (result.samples, result.reasons) == (3, {"missing": 1500})
    assert result.ignored == {"table of other bytes": 1}
    assert result.counts.others == {".parquet": 1}
    assert result.counts.is_over(0)
    with pytest.raises(DatasetError, match="holds bytes that begin as no image's file in row 1"):
        pack(config(f"{folder}/psd.parquet", tmp_path / "no"))


@pytest.mark.parametrize("names", [["image", "label", "label"], ["image", "image", "label"]])
def test_a_column_that_is_there_twice_is_told_as_that(tmp_path: Path, names: Any) -> None:
    columns = [pa.array(images(2)), pa.array(images(2)), pa.array(["a", "b"])]
    parquet.write_table(pa.Table.from_arrays(columns, names), tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match=r"names the column '(label|image)' twice"):
        pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    paths = pa.Table.from_arrays([pa.array(["a.png"])] * 3, ["path", "label", "label"])
    parquet.write_table(paths, tmp_path / "a.parquet")
    folder = write(tmp_path / "in", {"a.png": png(1)})
    with pytest.raises(DatasetError, match="names the column 'label' twice"):
        pack(config(folder, tmp_path / "out", annotations=str(tmp_path / "a.parquet")))


def test_a_row_that_names_an_image_by_its_very_path_is_no_other_one_s(tmp_path: Path) -> None:
    folder = write(tmp_path / "train", {"0.png": png(1), "train/0.png": png(2), "1.png": png(3)})
    (tmp_path / "t.csv").write_text("path,label\ntrain/0.png,inner\ntrain/1.png,outer\n")
    result = pack(config(folder, tmp_path / "out", annotations=str(tmp_path / "t.csv")))
    labels = {path: label for path, (_, label) in packed(result).items()}
    assert labels == {"0.png": None, "train/0.png": "inner", "1.png": "outer"}


def test_addresses_of_files_may_be_escaped_and_archives_in_a_list_are_told_as_such(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in", {"a b.png": png(1), "c%20d.png": png(2), "z.zip": b"PK\3\4" + bytes(9)})
    rows = [f"file://{tmp_path}/in/{name}" for name in ("a%20b.png", "c%20d.png", "z.zip")]
    (tmp_path / "in/l.csv").write_text("\n".join(["path", *rows]))
    result, _ = said(config(f"{tmp_path}/in/l.csv", tmp_path / "out"))
    assert set(packed(result)) == {"a b.png", "c%20d.png"}
    assert "13 bytes of zip: an archive, and no image" in (
        (tmp_path / "out/rejects.jsonl").read_text()
    )


def test_the_label_of_a_table_s_folders_is_taken_as_spark_writes_it(tmp_path: Path) -> None:
    write(tmp_path / "in", {f"{folder}/x": b"" for folder in ("year=1/label=a%2Fb", "label=c")})
    bare, own = pa.table({"image": images(2)}), pa.table({"image": images(2), "label": ["d", None]})
    parquet.write_table(bare, tmp_path / "in/year=1/label=a%2Fb/0.parquet")
    parquet.write_table(own, tmp_path / "in/label=c/1.parquet")
    result = pack(config(str(tmp_path / "in"), tmp_path / "out"))
    assert {path: label for path, (_, label) in packed(result).items()} == {
        "year=1/label=a%2Fb/0/00000000": "a/b", "year=1/label=a%2Fb/0/00000001": "a/b",
        "label=c/1/00000000": "d", "label=c/1/00000001": "c",
    }  # fmt: skip


@pytest.mark.parametrize("label", ["9" * 23, "9" * 5000, str(2**63)])
def test_a_number_that_no_class_can_have_is_a_name_like_any_other(
    tmp_path: Path, label: str
) -> None:
    folder = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(3)})
    table = tmp_path / "t.csv"
    table.write_text(f"path,label\n0.png,7\n1.png,{label}\n")
    result = pack(config(folder, tmp_path / "out", annotations=str(table)))
    assert {path: label for path, (_, label) in packed(result).items()}["1.png"] == label
    table.write_text(f"path,label\n0.png,7\n1.png,{label}\n2.png,8\n")
    again = pack(config(folder, tmp_path / "out", append=True, annotations=str(table)))
    found = {meta["label"]: cls for _, meta, cls in contents(again.dataset).values() if cls}
    assert found == {"7": b"0", label: b"1", "8": b"2"}


def test_a_list_names_no_file_anew_because_its_prefixes_changed(tmp_path: Path) -> None:
    write(tmp_path / "data", {"sub/a.png": png(1)})
    table, out = tmp_path / "l.csv", tmp_path / "out"
    table.write_text(f"path\n{tmp_path}/data/sub/a.png\n")
    one, two = str(tmp_path / "data"), str(tmp_path / "data/sub")
    pack(config(str(table), out, below=(one,)))
    with pytest.raises(DatasetError, match=r"is in this dataset as 'sub/a\.png'"):
        pack(config(str(table), out, below=(two, one), append=True))
    assert pack(config(str(table), out, below=(one, two), append=True)).samples == 1


def test_one_label_that_a_table_gives_is_not_called_a_folder_s(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    table = pa.table({"image": images(2), "label": ["a", "a"]})
    parquet.write_table(table, tmp_path / "in/t.parquet")
    result, text = said(config(str(tmp_path / "in"), tmp_path / "out"))
    assert "1 label: a 2." in text
    assert "All have the label" not in text
    assert result.table.labelled == 2


def test_what_an_earlier_table_said_and_none_says_now_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(3)})
    table, out = tmp_path / "in/l.csv", tmp_path / "out"
    table.write_text("path,label,caption\n0.png,a,one\n1.png,,\n2.png,b,\n")
    result = pack(config([folder, str(table)], out))
    found = [meta for _, meta, _ in contents(result.dataset).values()]
    captions = {meta["path"]: meta.get("caption") for meta in found}
    assert captions == {"0.png": "one", "1.png": None, "2.png": None}
    table.write_text("path,label,caption\n0.png,a,one\n")
    result, text = said(config([folder, str(table)], out, append=True))
    assert (result.samples, result.table.kept) == (3, 1)
    assert "1 sample keeps what an earlier table said, though none says anything of it" in text
    _, text = said(config(folder, out, append=True, annotations=str(table)))
    assert "earlier table said something, and this one says nothing" in text
