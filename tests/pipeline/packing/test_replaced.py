"""Appends of other files under the same paths: none takes another's place without a word."""

import shutil
from pathlib import Path

import pytest

from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import packed, zipped
from tests.pipeline.packing.test_odd_tables import said
from tests.pipeline.packing.test_pack import config, png, write

NAMES = [f"IMG_{n}.png" for n in range(3)]


def test_another_night_s_folder_of_the_same_names_is_refused_and_its_cures_work(
    tmp_path: Path,
) -> None:
    one = write(tmp_path / "one", {name: png(n) for n, name in enumerate(NAMES)})
    two = write(tmp_path / "two", {name: png(n + 10) for n, name in enumerate(NAMES)})
    out = tmp_path / "out"
    pack(config(one, out))
    words = r"two/IMG_0\.png: would replace the sample 'IMG_0\.png' of .*one/IMG_0\.png"
    with pytest.raises(DatasetError, match=words):
        pack(config(two, out, append=True))
    shutil.copytree(two, f"{one}/two")
    result = pack(config(one, out, append=True))
    assert (result.samples, result.replaced) == (6, (0, ""))
    shutil.rmtree(out)
    pack(config(one, out))
    pack(config([], out, append=True, remove=tuple(NAMES)))
    result = pack(config(two, out, append=True))
    assert {path: image for path, (image, _) in packed(result).items()} == {
        **{name: png(n + 10) for n, name in enumerate(NAMES)},
        **{f"two/{name}": png(n + 10) for n, name in enumerate(NAMES)},
    }


def test_an_archive_s_members_and_a_list_s_rows_are_no_other_s_either(tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = write(tmp_path / "one", {"a.png": png(1)})
    (tmp_path / "two.zip").write_bytes(zipped({"a.png": png(2)}))
    pack(config(one, out))
    with pytest.raises(DatasetError, match=r"two\.zip#a\.png: would replace"):
        pack(config(str(tmp_path / "two.zip"), out, append=True))
    two, table = write(tmp_path / "two", {"b.png": png(3)}), tmp_path / "l.csv"
    one = write(tmp_path / "three", {"b.png": png(4)})
    table.write_text(f"path\n{two}/b.png\n")
    below = {"below": (two, one)}
    pack(config(str(table), tmp_path / "listed", **below))
    table.write_text(f"path\n{one}/b.png\n")
    with pytest.raises(DatasetError, match=r"three/b\.png: would replace"):
        pack(config(str(table), tmp_path / "listed", append=True, **below))


def test_a_folder_that_moved_or_was_copied_is_the_same_one(tmp_path: Path) -> None:
    one = write(tmp_path / "one", {name: png(n) for n, name in enumerate(NAMES)})
    out = tmp_path / "out"
    pack(config(one, out))
    shutil.copytree(one, tmp_path / "copy")
    result = pack(config(str(tmp_path / "copy"), out, append=True))
    assert (result.samples, result.added, result.replaced) == (3, 0, (0, ""))
    shutil.rmtree(tmp_path / "copy")
    shutil.move(one, tmp_path / "moved")
    write(tmp_path / "moved", {"IMG_1.png": png(50)})
    result, text = said(config(str(tmp_path / "moved"), out, append=True))
    assert (result.samples, result.replaced) == (3, (1, "IMG_1.png"))
    assert result.to_json()["replaced"] == 1
    assert "1 sample replaced: other bytes have the same path now (e.g. 'IMG_1.png')" in text


def test_an_empty_part_to_train_on_is_told_and_one_label_of_some_is_not_called_all_s(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {"k/0.png": png(0), "k/1.png": png(1), "2.png": png(2)})
    _, text = said(config(folder, tmp_path / "out", holdout=0.999999))
    assert "The part to train on is EMPTY: `--holdout 0.999999` holds all images out." in text
    _, text = said(config(folder, tmp_path / "some"))
    assert "1 label: k 2; 1 without a label." in text
    assert "All have the label" not in text


def test_folders_of_parts_are_told_to_be_no_classes(tmp_path: Path) -> None:
    images = {f"{part}/cat/{n}.png": png(n) for n, part in enumerate(("train", "train", "val"))}
    _, text = said(config(write(tmp_path / "in", images), tmp_path / "out"))
    assert "These are the parts of a dataset that is split already, and no classes" in text
    _, text = said(config(f"{tmp_path}/in/train", tmp_path / "train"))
    assert "parts of a dataset" not in text
