"""Neighbours of the complaints in test_odd_inputs: what lies under a wrong name, or beside."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.config import IndexConfig
from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.adopt import adopt
from pipeline.packing.counts import TableCounts
from pipeline.packing.pack import pack
from pipeline.sources import group_rows, members
from tests.pipeline.packing.test_odd_inputs import file, link, pack_file, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.packing.test_tables import STRUCT, image_table, read
from tests.support.presence import present

TWO = tar(file("x/a.png", png(1)), file("y/b.png", png(2)))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.tar", gzip.compress(TWO)),
        ("t.tar.gz", TWO),
        ("t.tgz", lzma.compress(TWO)),
        ("t.zip", TWO),
        ("t.tar.xz", zipped({"x/a.png": png(1), "y/b.png": png(2)})),
        ("0f3a9c", TWO),
        ("b", gzip.compress(TWO)),
    ],
)
def test_an_archive_is_what_its_bytes_say_whatever_its_name(
    tmp_path: Path, name: Any, data: Any
) -> None:
    result = pack_file(tmp_path, name, data)
    assert packed(result) == {"x/a.png": (png(1), "x"), "y/b.png": (png(2), "y")}


def test_archives_in_an_archive_are_told_by_their_bytes_too(tmp_path: Path) -> None:
    data = tar(file("in.zip", TWO), file("on.tar", gzip.compress(TWO)))
    assert set(packed(pack_file(tmp_path, "t.tar", data))) == {
        "in/x/a.png", "in/y/b.png", "on/x/a.png", "on/y/b.png"
    }  # fmt: skip


def test_parts_of_archives_and_those_without_a_name_are_counted_with_their_cure(
    tmp_path: Path,
) -> None:
    files = {
        "x.tar.001": TWO[:700], "x.tar.002": TWO[700:], "y.zip.part1": b"PK", "z.tar.gz.aa": b"x",
        "w.z01": b"x", "0f3a9c": TWO, "1f": zipped({"a.png": png(3)}), "2f": gzip.compress(b"ab"),
        "a.png.gz": gzip.compress(png(4)), "t.tar.lz4": b"x", "book.cbz": b"PK", "ok.png": png(5),
        "notes.txt.gz": b"x",
    }  # fmt: skip
    result = pack(config(write(tmp_path / "in", files), tmp_path / "out"))
    assert result.ignored == {
        "split archive": 5, "unnamed archive": 3, ".gz": 1, ".lz4": 1, ".cbz": 1,
    }  # fmt: skip
    assert result.counts.others == {".gz": 1}
    lines = "\n".join(result.counts.summary())
    assert "5 split archive: join their parts with cat" in lines
    assert "3 unnamed archive: name them as what they are" in lines


def test_one_block_of_zeros_at_its_very_end_ends_a_tar(tmp_path: Path) -> None:
    whole = TWO.rstrip(b"\0")
    members_end = -(-len(whole) // 512) * 512
    whole = whole.ljust(members_end, b"\0")
    assert set(packed(pack_file(tmp_path, "t.tar", whole + bytes(512)))) == {"x/a.png", "y/b.png"}
    (tmp_path / "none.tar").write_bytes(whole)
    with pytest.raises(DatasetError, match=r"no end mark .* head -c 1024 /dev/zero >> .*none\.tar"):
        pack(config(str(tmp_path / "none.tar"), tmp_path / "no"))


def test_links_in_folders_that_links_lead_to_are_followed_and_rings_end(tmp_path: Path) -> None:
    data = tar(
        file("x/a.png", png(1)), link("x/b.png", "a.png"), link("z", "x"), link("w", "z"),
        link("x/up", "../x"), link("x/one", "two"), link("x/two", "one"), link("y", "."),
    )  # fmt: skip
    result = pack_file(tmp_path, "t.tar", data)
    assert set(packed(result)) == {f"{folder}/{n}.png" for folder in "xzw" for n in "ab"}


def test_links_that_double_with_each_folder_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "_MOST_LINKED", 1000)
    links = [link(f"d{n}/{way}", f"../d{n + 1}") for n in range(30) for way in "lr"]
    with pytest.raises(DatasetError, match="make over 1,000 names"):
        pack_file(tmp_path, "t.tar", tar(file("d30/a.png", png(1)), *links))


def test_members_of_an_unknown_type_are_files_and_devices_are_none(tmp_path: Path) -> None:
    odd = [file(f"{n}.png", png(n)) for n in range(3)]
    for (info, _), kind in zip(odd, (b"7", b"Z", tarfile.FIFOTYPE), strict=True):
        info.type = kind
    odd[2] = (odd[2][0], b"")
    odd[2][0].size = 0
    result = pack_file(tmp_path, "t.tar", tar(*odd))
    assert set(packed(result)) == {"0.png", "1.png"}
    assert result.counts.others == {"devices": 1}


def test_names_in_zips_are_read_as_macos_and_windows_write_them(tmp_path: Path) -> None:
    data = bytearray(zipped({"café/a.png": png(1)}))
    for signature, at in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        data[data.index(signature) + at] &= ~0x08  # macOS: UTF-8, and no flag that says so
    assert packed(pack_file(tmp_path, "mac.zip", bytes(data))) == {"café/a.png": (png(1), "café")}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as writer:
        info = zipfile.ZipInfo("XX/a.png")
        name = "猫/a.png".encode()
        info.extra = (0x7075).to_bytes(2, "little") + (5 + len(name)).to_bytes(2, "little")
        info.extra += b"\1" + zlib.crc32(b"\x94L/a.png").to_bytes(4, "little") + name
        writer.writestr(info, png(2))
    data = bytearray(buffer.getvalue().replace(b"XX/a.png", b"\x94L/a.png"))
    (tmp_path / "win.zip").write_bytes(data)
    result = pack(config(str(tmp_path / "win.zip"), tmp_path / "win"))
    assert packed(result) == {"猫/a.png": (png(2), "猫")}


def test_an_inner_archive_may_be_called_anything(tmp_path: Path) -> None:
    inner = zipped({"a.png": png(1)})
    result = pack_file(tmp_path, "t.zip", zipped({"a:b:c.zip": inner, '"[1].zip': inner}))
    assert set(packed(result)) == {"a:b:c/a.png", '"[1]/a.png'}


def test_hundreds_of_compressed_tars_are_read_by_threads_that_let_each_other_s_files_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(70):  # more than are kept open
        data = tar(*(file(f"{k}.png", png(100 * n + k)) for k in range(3)))
        write(tmp_path / "in", {f"c{n:02d}.tgz": gzip.compress(data)})
    result = pack(config(str(tmp_path / "in"), tmp_path / "out", shard_bytes=10**6))
    assert {path: image for path, (image, _) in packed(result).items()} == {
        f"c{n:02d}/{k}.png": png(100 * n + k) for n in range(70) for k in range(3)
    }


@pytest.mark.parametrize(
    "values",
    [[None, png(1), png(2)], [b"broken", png(1), png(2)], [None] * 20 + [png(1), png(2)]],
)
def test_a_column_of_bytes_holds_images_though_its_first_values_do_not(
    tmp_path: Path, values: Any
) -> None:
    parquet.write_table(pa.table({"picture": pa.array(values)}), tmp_path / "t.parquet")
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    assert sorted(image for image, _ in packed(result).values()) == sorted([png(1), png(2)])
    assert result.seen == len(values)


def test_a_struct_of_bytes_alone_is_an_image_and_a_list_of_images_is_refused(
    tmp_path: Path,
) -> None:
    images = pa.array([{"bytes": png(1)}, {"bytes": png(2)}])
    parquet.write_table(pa.table({"image": images}), tmp_path / "t.pq")
    assert len(packed(pack(config(str(tmp_path / "t.pq"), tmp_path / "out")))) == 2
    lists = pa.array([[{"bytes": png(1), "path": None}]], pa.list_(STRUCT))
    parquet.write_table(pa.table({"images": lists}), tmp_path / "l.parquet")
    folder = write(tmp_path / "in", {"a.png": png(3)})
    (tmp_path / "l.parquet").rename(tmp_path / "in/l.parquet")
    with pytest.raises(DatasetError, match=r"images holds lists of images. Write a row for each"):
        pack(config(folder, tmp_path / "no"))


def test_no_class_is_no_label_and_several_labels_are_a_column(tmp_path: Path) -> None:
    about = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})
    table = image_table(range(3), label=pa.array([-1, 1, 0]))
    table = table.replace_schema_metadata({"huggingface": about})
    parquet.write_table(table, tmp_path / "t.parquet")
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    assert [label for _, label in sorted(packed(result).values())] == [
        dict(zip([png(n) for n in range(3)], [None, "dog", "cat"], strict=True))[image]
        for image, _ in sorted(packed(result).values())
    ]
    several = image_table(range(2), label=pa.array([[0, 1], [1]]))
    parquet.write_table(several, tmp_path / "u.parquet")
    result = pack(config(str(tmp_path / "u.parquet"), tmp_path / "several"))
    assert present(result.found).num_labels == 0
    assert sorted(read(Dataset.open(result.dataset), "label").values()) == [[[0, 1]], [[1]]]


def test_a_column_of_bytes_that_is_left_out_is_counted_and_a_wrong_name_is_said(
    tmp_path: Path,
) -> None:
    table = image_table(range(3), mask=pa.array([png(9)] * 3))
    parquet.write_table(table, tmp_path / "t.parquet")
    url = str(tmp_path / "t.parquet")
    result = pack(config(url, tmp_path / "out", image_column="image"))
    assert result.counts.others == {"column mask": 3}
    with pytest.raises(
        DatasetError, match=r"no column 'imgae' \(`--image-column`\), but image, mask"
    ):
        pack(config(url, tmp_path / "no", image_column="imgae"))
    (tmp_path / "in").mkdir()
    (tmp_path / "t.parquet").rename(tmp_path / "in/t.parquet")
    with pytest.raises(DatasetError, match=r"no table has the column 'imgae' \(`--image-column`\)"):
        pack(config(str(tmp_path / "in"), tmp_path / "no", image_column="imgae"))


def test_rows_of_a_list_that_name_what_no_file_is_called_are_rejected(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1)})
    names = ["a.png", "x" * 300, "y/" * 3000, "nul\0.png", "~", "..", "a.png/b.png"]
    table = tmp_path / "in/l.jsonl"
    table.write_text("".join(f"{json.dumps({'path': name})}\n" for name in names))
    result = pack(config(f"{folder}/l.jsonl", tmp_path / "out"))
    assert (result.seen, result.samples, result.rejected) == (7, 1, 6)
    table.write_text('{"path": "a.png", "label": "\\ud83d"}\n')
    with pytest.raises(DatasetError, match="line 1 is no JSON"):
        pack(config(f"{folder}/l.jsonl", tmp_path / "half"))


def test_texts_that_are_not_utf8_in_a_table_are_no_traceback(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    parquet.write_table(image_table(range(2), caption=bad), tmp_path / "c.parquet")
    result = pack(config(str(tmp_path / "c.parquet"), tmp_path / "out"))
    assert (result.samples, result.reasons) == (1, {"corrupt": 1})
    parquet.write_table(image_table(range(2), label=bad), tmp_path / "l.parquet")
    with pytest.raises(DatasetError, match=r"l\.parquet: can't be read .*utf-8"):
        pack(config(str(tmp_path / "l.parquet"), tmp_path / "no"))


@pytest.mark.parametrize("workers", [1, 5])
def test_a_row_group_is_read_forward_a_few_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(group_rows, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(group_rows, "_BEHIND", 64)
    opened: list[Any] = []
    batches = group_rows._batches

    def noted(*at: Any) -> Any:
        opened.append(at)
        return batches(*at)

    monkeypatch.setattr(group_rows, "_batches", noted)
    parquet.write_table(image_table(range(300)), tmp_path / "t.parquet", row_group_size=200)
    options = {"shard_bytes": 10**6, "workers": workers}
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out", **options))
    assert {path: image for path, (image, _) in packed(result).items()} == {
        f"t/{n:08d}": png(n) for n in range(300)
    }
    assert len(opened) <= 2 + 2 * (workers - 1), (
        "each of two groups once by each who begins at once"
    )


def test_rows_without_a_path_are_counted_in_annotations_and_lists(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1), "b.png": png(2)})
    rows = "path,label\na.png,x\n,y\n  ,z\nb.png,w\n"
    (tmp_path / "in/t.csv").write_text(rows)
    result = pack(config(folder, tmp_path / "out", annotations=f"{folder}/t.csv"))
    expected = TableCounts(4, 2, 2, images=2, example="row 2, without a path", labelled=2)
    assert result.table == expected
    listed = pack(config(f"{folder}/t.csv", tmp_path / "listed"))
    assert (listed.seen, listed.samples, listed.reasons) == (4, 2, {"missing": 2})


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_table_beside_an_archive_names_what_lies_in_it(tmp_path: Path, kind: Any) -> None:
    images = {"1.png": png(1), "deep/2.png": png(2)}
    data = zipped(images) if kind == "zip" else tar(*(file(*each) for each in images.items()))
    folder = write(tmp_path / "in", {f"images.{kind}": data})
    lines = [{"file_name": "1.png", "text": "one"}, {"file_name": "deep/2.png", "text": "two"}]
    table = tmp_path / "in/metadata.jsonl"
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    result = pack(config(folder, tmp_path / "out", annotations=str(table), unmatched=0.0))
    assert result.table.images == 2
    write(tmp_path / "in", {f"more.{kind}": data})
    with pytest.raises(DatasetError, match="none of its 2 rows names an image"):
        pack(config(folder, tmp_path / "two", annotations=str(table)))


def test_a_table_in_a_folder_of_the_source_names_images_from_there_on(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in",
        {f"{split}/{n}.png": png(10 * at + n) for at, split in enumerate("ab") for n in range(2)},
    )
    (tmp_path / "in/b/metadata.csv").write_text("file_name,label\n0.png,zero\n1.png,one\n")
    result = pack(config(folder, tmp_path / "out", annotations=f"{folder}/b/metadata.csv"))
    assert {path: label for path, (_, label) in packed(result).items()} == {
        "a/0.png": "a", "a/1.png": "a", "b/0.png": "zero", "b/1.png": "one",
    }  # fmt: skip


def test_adopting_obeys_the_law_for_what_has_no_key_and_for_other_archives(tmp_path: Path) -> None:
    data = tar(
        file("0.png", png(0)), file("0.json", b"{}"), link("0.cls", "0.json", tarfile.LNKTYPE),
        file("0f3a9c", png(1)), file("noext", b"words"), file(".hidden.png", png(2)),
        file("__MACOSX/._0.png", b"\0\5\x16\7" + bytes(50)), file("2.txt", b"words"),
        file("3.img", png(3)), file("4.mask", png(4)), file("4.png", png(5)),
    )  # fmt: skip
    folder = write(
        tmp_path / "in", {"a.tar": data, "b.tar.gz": gzip.compress(data), "c.zip": zipped({}),
                          "d.TAR": tar(file("t.png", png(7)), file("u.cr2", b"II*\0"))},
    )  # fmt: skip
    result = adopt(IndexConfig(source=(folder,), output=str(tmp_path / "out")))
    assert result.samples == 4, "0, 3 by its bytes, 4 by its suffix, t"
    assert result.reasons == {"no-image": 2, "no-key": 1}
    assert result.ignored == {"hidden": 1, "no plain tar": 2}
    assert result.seen == 10
    assert result.counts.others == {"without key": 1, "._": 1, "links": 1, "mask": 1}
    with pytest.raises(DatasetError, match=r"holds no \.tar among 1 archives, which jobs"):
        adopt(IndexConfig(source=(f"{folder}/c.zip",), output=str(tmp_path / "no")))
