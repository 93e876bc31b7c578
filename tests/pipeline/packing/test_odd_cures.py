"""What is said of archives that can't be read as they lie can be done, and mends it."""

import gzip
import io
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import IndexConfig
from pipeline.data.decode import PIXEL_LIMIT, probe_image
from pipeline.errors import DatasetError, SampleError, UnreadableError
from pipeline.packing.adopt import adopt
from pipeline.packing.pack import pack
from pipeline.sources.source_file import SourceFile
from tests.pipeline.packing.test_odd_inputs import file, pack_file, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png, write

CATS = {"0.png": png(0), "sub/1.png": png(1)}


@pytest.mark.parametrize(
    ("name", "beside"),
    [("cats.tar", "cats/"), ("cats.zip", "cats/"), ("cats.tar", "cats.zip")],
)
def test_of_an_archive_beside_its_folder_one_is_named_to_be_left_out(
    tmp_path: Path, name: str, beside: str
) -> None:
    def put(what: str) -> None:
        if what.endswith("/"):
            write(tmp_path / "in" / what, CATS)
        elif what.endswith(".zip"):
            write(tmp_path / "in", {what: zipped(CATS)})
        else:
            write(tmp_path / "in", {what: tar(*(file(*each) for each in CATS.items()))})

    put(name)
    put(beside)
    with pytest.raises(DatasetError, match="4 inputs share 2 paths") as error:
        pack(config(str(tmp_path / "in"), tmp_path / "out"))
    for each in (name, beside):
        assert f"{tmp_path}/in/{each} " in str(error.value).partition("key is made")[2]
    assert "stand for one folder: leave one of them out" in str(error.value)
    shutil.move(tmp_path / "in" / beside, tmp_path / "elsewhere")
    result = pack(config(str(tmp_path / "in"), tmp_path / "out"))
    assert packed(result) == {f"cats/{path}": (data, "cats") for path, data in CATS.items()}


def test_three_inputs_of_one_path_in_several_sources_are_all_counted(tmp_path: Path) -> None:
    sources = [write(tmp_path / "in" / name, {"x/0.png": png(0)}) for name in "abc"]
    said = r"3 inputs share 1 path .* and 1 more\. Name a folder that all lie in"
    with pytest.raises(DatasetError, match=said):
        pack(config(sources, tmp_path / "out"))
    result = pack(config(str(tmp_path / "in"), tmp_path / "out"))
    assert set(packed(result)) == {"a/x/0.png", "b/x/0.png", "c/x/0.png"}


def test_the_last_part_of_a_split_zip_is_told_as_one(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": png(1)}))
    data[-18:-16] = struct.pack("<H", 2)  # APPNOTE.TXT, 4.3.16: number of this disk
    with pytest.raises(UnreadableError, match=r"last part of a split archive.*zip -s 0"):
        pack_file(tmp_path, "t.zip", bytes(data))
    plain = io.BytesIO(zipped({"a.png": png(1)}))
    with zipfile.ZipFile(plain, "a") as archive:
        archive.comment = b"says PK\5\6, and is no split archive, however long it is"
    assert pack_file(tmp_path, "c.zip", plain.getvalue()).samples == 1


def test_volumes_of_a_tar_are_told_as_such(tmp_path: Path) -> None:
    write(tmp_path, {"big.bin": bytes(range(256)) * 100})
    make = ["tar", "-M", "-L", "10", "--format=gnu", "-cf", "1.tar", "-f", "2.tar", "-f", "3.tar"]
    subprocess.run([*make, "big.bin"], cwd=tmp_path, check=True)
    for name, said in (("1.tar", r"cut short.*tar -M"), ("2.tar", "is a later volume of a tar")):
        with pytest.raises(UnreadableError, match=said):
            pack(config(f"{tmp_path}/{name}", tmp_path / "out"))


def test_a_zips_name_in_unicode_counts_unless_the_member_was_renamed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, old in (("??/q.png", "??/q.png"), ("new/r.png", "old/r.png")):
            info, field = zipfile.ZipInfo(name), "日本/q.png".encode()
            # APPNOTE.TXT, 4.6.9: version 1, the checksum of the name that it stands for.
            field = struct.pack("<BL", 1, zlib.crc32(old.encode())) + field
            info.extra = struct.pack("<HH", 0x7075, len(field)) + field
            archive.writestr(info, png(1))
    found = packed(pack_file(tmp_path, "t.zip", buffer.getvalue()))
    assert found == {"日本/q.png": (png(1), "日本"), "new/r.png": (png(1), "new")}


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("../up/1.png", "up"), ("cats/../dogs/2.png", "dogs"), ("./cats/3.png", "cats"),
        ("..", None), ("../4.png", None), ("cats/5.png", "cats"), (".cats/6.png", ".cats"),
    ],
)  # fmt: skip
def test_no_label_is_called_by_dots(path: str, label: Any) -> None:
    assert SourceFile(path, "t.tar", 1, "").label == label


def test_a_header_that_is_damaged_an_empty_file_and_a_bomb_are_told_as_what_they_are() -> None:
    damaged = bytearray(png(1))
    damaged[29] ^= 255  # of the header's checksum
    header = struct.pack(">2I5B", 15_000, 13_000, 8, 2, 0, 0, 0)
    bomb = png(1)[:12] + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    for data, said in (
        (bytes(damaged), "begins as PNG, but its header is damaged"),
        (b"", "an empty file"),
        (bomb + png(1)[33:], f"over the limit of {PIXEL_LIMIT:,}"),
    ):
        with pytest.raises(SampleError, match=said):
            probe_image(data)


def test_a_folder_in_an_archive_is_no_source_and_a_compressed_tar_no_plain_one(
    tmp_path: Path,
) -> None:
    data = tar(*(file(f"cats/{path}", each) for path, each in CATS.items()))
    folder = write(tmp_path / "in", {"a.tar": data, "b.tar": gzip.compress(data)})
    with pytest.raises(DatasetError, match=r"a\.tar/cats: lies in an archive.* Name .*/in/a\.tar,"):
        pack(config(f"{folder}/a.tar/cats", tmp_path / "out"))
    with pytest.raises(DatasetError, match=r"is gzip by its first bytes, no plain tar: jobs\.pack"):
        adopt(IndexConfig(source=(f"{folder}/b.tar",), output=str(tmp_path / "out")))
    assert pack(config(f"{folder}/b.tar", tmp_path / "out")).samples == 2


def test_a_list_that_windows_wrote_names_its_images(tmp_path: Path) -> None:
    rows = "path,label\nx\\0.png,a\nx\\none.png,b\n"
    folder = write(tmp_path / "in", {"x/0.png": png(0), "t.csv": rows.encode()})
    result = pack(config(f"{folder}/t.csv", tmp_path / "out"))
    assert (packed(result), result.reasons) == ({"x/0.png": (png(0), "a")}, {"missing": 1})


@pytest.mark.parametrize(
    ("row", "said"),
    [("a.png,b,c", "has 3 cells.* Quote what holds a ','"), ("a.png", "has 1 cells.* Write a ','")],
)
def test_a_row_of_too_many_or_too_few_cells_is_told_what_it_lacks(
    tmp_path: Path, row: str, said: str
) -> None:
    folder = write(tmp_path / "in", {"t.csv": f"path,label\n{row}\n".encode()})
    with pytest.raises(DatasetError, match=said):
        pack(config(f"{folder}/t.csv", tmp_path / "out"))
