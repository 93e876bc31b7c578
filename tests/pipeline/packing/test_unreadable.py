"""Archives and tables that can't be read to their end, among good ones; names in old encodings;
tables that name files in place of holding them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from jobs.pack import main
from pipeline.config import IndexConfig, PackConfig
from pipeline.errors import UnreadableError
from pipeline.packing.adopt import adopt
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from tests.pipeline.packing.test_odd_inputs import file, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.packing.test_tables import STRUCT, image_table

WHOLE = {
    "t.tar": tar(file("1.png", png(1)), file("2.png", png(2))),
    "t.zip": zipped({"1.png": png(1), "2.png": png(2)}),
}


def cut(name: str) -> bytes:
    """The tar ends in its second member, the zip before its directory."""
    return WHOLE[name][: 1536 + 100 if name == "t.tar" else -30]


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("name", ["t.tar", "t.zip", "t.parquet"])
def test_an_archive_that_is_cut_is_a_reject_among_good_ones_until_it_is_copied_again(
    tmp_path: Path, name: Any, retry: Any
) -> None:
    whole = WHOLE.get(name)
    if whole is None:
        parquet.write_table(image_table([1, 2]), tmp_path / name)
        whole = (tmp_path / name).read_bytes()
    broken = whole[:-4] if name == "t.parquet" else cut(name)
    folder = write(tmp_path / "in", {name: broken, "a.tar": tar(file("3.png", png(3)))})
    result = pack(config(folder, tmp_path / "out"))
    before = 1 if name == "t.tar" else 0
    assert (result.seen, result.samples, result.reasons) == (before + 2, before + 1,
                                                             {"unreadable": 1})  # fmt: skip
    assert result.counts.is_over(0.99)
    assert not result.counts.is_over(1)
    listed = json.loads((tmp_path / "out/rejects.jsonl").read_text())
    assert (listed["path"], listed["reason"]) == (name, "unreadable")
    again = pack(config(folder, tmp_path / "out", append=True))
    assert (again.generation, again.counts) == (1, result.counts)
    (tmp_path / "in" / name).write_bytes(whole)
    mended = pack(config(folder, tmp_path / "out", append=True, retry_rejected=retry))
    assert (mended.seen, mended.samples, mended.reasons, mended.removed) == (3, 3, {}, 0)
    assert not (tmp_path / "out/rejects.jsonl").exists()
    assert verify_dataset(mended.dataset) == []


def test_the_only_source_is_refused_and_one_of_several_is_a_reject(tmp_path: Path) -> None:
    write(tmp_path, {"t.tar": cut("t.tar"), "u.tar": WHOLE["t.tar"]})
    with pytest.raises(UnreadableError, match=r"t\.tar: ends inside 2\.png: it was cut short"):
        pack(config(str(tmp_path / "t.tar"), tmp_path / "out"))
    write(tmp_path / "more", {"9.png": png(9)})
    sources = [str(tmp_path / "t.tar"), str(tmp_path / "more")]
    result = pack(config(sources, tmp_path / "out"))
    assert (result.samples, result.reasons) == (2, {"unreadable": 1})


def test_a_lost_archive_is_exit_3_whatever_the_budget_but_all(tmp_path: Path) -> None:
    write(tmp_path / "in", {"t.zip": cut("t.zip"), "a.png": png(1)})
    asked = PackConfig(source=(str(tmp_path / "in"),), output=str(tmp_path / "out"), workers=1)
    lenient = main(asked.model_copy(update={"bad_fraction": 0.9}))
    assert lenient.exit_code == 3
    assert any("What else 1 of the archives" in line for line in lenient.summary)
    assert any("1 unreadable: copy those archives" in line for line in lenient.summary)
    taken = asked.model_copy(update={"bad_fraction": 1.0, "output": str(tmp_path / "o")})
    assert main(taken).exit_code == 0


def test_of_adopted_tars_a_cut_one_is_left_out_and_the_only_one_refused(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.tar": WHOLE["t.tar"], "b.tar": cut("t.tar")})
    result = adopt(IndexConfig(source=(str(tmp_path / "in"),), output=str(tmp_path / "out")))
    assert (result.seen, result.samples, result.reasons) == (3, 2, {"unreadable": 1})
    assert result.counts.is_over(0.99)
    with pytest.raises(UnreadableError, match=r"b\.tar: ends inside"):
        adopt(IndexConfig(source=(str(tmp_path / "in/b.tar"),), output=str(tmp_path / "o")))


def test_parts_of_an_adopted_sample_that_do_not_follow_one_another_are_told_so(
    tmp_path: Path,
) -> None:
    members = [("1.png", png(1)), ("2.png", png(2)), ("1.txt", b"one"), ("3.txt", b"three")]
    write(tmp_path, {"t.tar": tar(*(file(*each) for each in members))})
    result = adopt(IndexConfig(source=(str(tmp_path / "t.tar"),), output=str(tmp_path / "out")))
    # An image whose caption lies elsewhere is one input, and not packed as if it had none.
    assert (result.seen, result.samples) == (3, 1)
    assert result.reasons == {"scattered": 1, "no-image": 1}
    assert any("sort the members by name" in line for line in result.counts.summary())


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "cp437"])
def test_names_of_zips_in_old_encodings_go_in_whole_and_are_counted(
    tmp_path: Path, encoding: Any
) -> None:
    # The second byte of these letters in Shift-JIS and GBK is that of a backslash.
    name = {"shift_jis": "表ソ", "gbk": "誠乗", "cp437": "éÄ"}[encoding].encode(encoding)
    assert encoding == "cp437" or b"\\" in name
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr(f"{'X' * len(name)}.png", png(1))
        archive.writestr("cats\\2.png", png(2))
    data = (tmp_path / "plain.zip").read_bytes().replace(b"X" * len(name), name)
    (tmp_path / "t.zip").write_bytes(data)
    result = pack(config(str(tmp_path / "t.zip"), tmp_path / "out"))
    assert packed(result) == {
        f"{name.decode('cp437')}.png": (png(1), None), "cats/2.png": (png(2), "cats"),
    }  # fmt: skip
    assert result.counts.others == {"names in no UTF-8, read as CP437": 1}
    members = [(name + b".png").decode("utf-8", "surrogateescape"), "cats/2.png"]
    (tmp_path / "t.tar").write_bytes(tar(*(file(each, png(3)) for each in members)))
    in_tar = pack(config(str(tmp_path / "t.tar"), tmp_path / "tar"))
    assert (in_tar.samples, in_tar.reasons) == (1, {"name": 1})


def test_a_row_that_names_its_image_is_read_below_the_table_and_named_prefixes_alone(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in/photos", {"1.png": png(1)})
    write(tmp_path / "else", {"2.png": png(2), "not.png": b"text"})
    names = ["photos/1.png", str(tmp_path / "else/2.png"), "../else/not.png", "gone.png", ""]
    rows = pa.array([{"bytes": None, "path": name} for name in names], STRUCT)
    table = tmp_path / "in/t.parquet"
    parquet.write_table(pa.table({"image": rows, "label": list("abcde")}), table)
    alone = pack(config(str(table), tmp_path / "alone"))
    assert packed(alone) == {"t/00000000": (png(1), "a")}
    assert alone.reasons == {"outside": 2, "missing": 2}
    assert any("name their prefix with `--below`" in line for line in alone.counts.summary())
    asked = config(str(table), tmp_path / "out", below=(str(tmp_path / "else"),))
    result = pack(asked)
    assert packed(result) == {"t/00000000": (png(1), "a"), "t/00000001": (png(2), "b")}
    assert result.reasons == {"not-an-image": 1, "missing": 2}
    assert pack(asked).counts == result.counts
