"""What a pack tells at once: rows that met nothing, copies, sizes, what may be tried again."""

from pathlib import Path

import pytest
from PIL import Image

from jobs.pack import _summary, main
from pipeline.config import PackConfig
from pipeline.data import Dataset, image_kinds
from pipeline.errors import DatasetError
from pipeline.packing.counts import TableCounts
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import jpeg, packed
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.packing.test_tables import read
from tests.support.presence import present


def test_half_a_labelled_dataset_is_counted_and_an_error_past_its_budget(tmp_path: Path) -> None:
    folder = write(tmp_path / "table", {f"{n:03d}.png": png(n) for n in range(6)})
    rows = ["000.png,00", "./001.png,1.10", "/002.png,true", "table/003.png,1e3", "004.PNG,x",
            "table\\005.png,NA"]  # fmt: skip
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path, label", *rows]))
    result = pack(config(folder, tmp_path / "out", annotations=str(table)))
    assert {path: label for path, (_, label) in packed(result).items()} == {
        "000.png": "00", "001.png": "1.10", "002.png": "true", "003.png": "1e3", "004.png": None,
        "005.png": "NA",
    }  # fmt: skip
    assert result.table == TableCounts(
        6, met=5, unmatched=1, images=5, example="004.PNG", labelled=5
    )
    with pytest.raises(DatasetError, match=r"5 of 6 images have a row; 1 of its 6 rows"):
        pack(config(folder, tmp_path / "strict", annotations=str(table), unmatched=0.1))
    assert not (tmp_path / "strict").exists()


def test_exact_copies_are_counted_and_left_out_when_asked(tmp_path: Path) -> None:
    images = {"a.png": png(1), "b.png": png(1), "c.png": png(2), "d/a.png": png(1)}
    folder = write(tmp_path / "in", images)
    result = pack(config(folder, tmp_path / "all"))
    assert (result.samples, result.copies, result.counts.duplicates) == (4, 2, 0)
    result = pack(config(folder, tmp_path / "one", deduplicate=True))
    assert (result.samples, result.copies, result.counts.duplicates) == (2, 0, 2)
    assert sorted(image for image, _ in packed(result).values()) == sorted([png(1), png(2)])
    write(tmp_path / "in", {"e.png": png(2), "f.png": png(3)})
    result = pack(config(folder, tmp_path / "one", deduplicate=True, append=True))
    assert (result.samples, result.counts.duplicates, result.added) == (3, 3, 1)


def test_what_was_rejected_or_ignored_is_read_again_alone_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1), "b.png": png(2, (3, 3)), "c.heic": jpeg(9)})
    with monkeypatch.context() as before:
        before.setattr(image_kinds, "has_extra", lambda extra: False)
        before.setattr(image_kinds, "kind_of", lambda head: None)
        result = pack(config(folder, tmp_path / "out"))
    assert (result.samples, result.ignored) == (2, {".heic": 1})
    write(tmp_path / "in", {"new.png": png(5)})
    again = pack(config(folder, tmp_path / "out", append=True, retry_rejected=True))
    assert (again.added, again.samples, again.ignored) == (1, 3, {"new": 1})
    last = pack(config(folder, tmp_path / "out", append=True))
    assert (last.added, last.samples, last.ignored) == (1, 4, {})


def test_labels_modes_and_sides_are_told(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "in", {"a/1.png": png(1), "a/2.png": png(2, (30, 4)), "b/3.png": png(3)}
    )
    found = present(pack(config(folder, tmp_path / "out")).found)
    assert found.labels == {"a": 2, "b": 1}
    assert found.modes == {"RGB": 3}
    assert (found.smallest_side, found.largest_side) == (4, 30)


def test_rows_of_one_image_that_differ_by_their_caption_are_its_several_captions(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1), "b.png": png(2)})
    rows = ["path,label,caption", "a.png,x,one", "a.png,x,two", "b.png,y,three", "a.png,x,one"]
    for name, options in (("t.csv", {"annotations": str(tmp_path / "in/t.csv")}), ("l.csv", {})):
        (tmp_path / "in" / name).write_text("\n".join(rows))
        source = folder if options else str(tmp_path / "in" / name)
        result = pack(config(source, tmp_path / f"out-{name}", **options))
        captions = read(Dataset.open(result.dataset), "path", "caption")
        assert sorted(captions.values()) == [["a.png", ["one", "two"]], ["b.png", "three"]]
    (tmp_path / "in/t.csv").write_text("path,label\na.png,x\na.png,y\n")
    with pytest.raises(DatasetError, match="twice, with other values"):
        pack(config(folder, tmp_path / "no", annotations=str(tmp_path / "in/t.csv")))


def test_one_image_is_a_source_and_another_file_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"a.png": png(1), "urls.txt": b"http://x/a.png\n"})
    assert set(packed(pack(config(str(tmp_path / "a.png"), tmp_path / "out")))) == {"a.png"}
    with pytest.raises(DatasetError, match="holds no images among 1 other files"):
        pack(config(str(tmp_path / "urls.txt"), tmp_path / "no"))


def test_captions_beside_images_and_one_label_for_all_are_told_with_what_to_do(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in/all", {f"{n}.png": png(n) for n in range(3)})
    write(tmp_path / "in/all", {f"{n}.txt": b"a caption" for n in range(3)} | {"t.csv": b"path"})
    asked = PackConfig(source=(str(tmp_path / "in"),), output=str(tmp_path / "out"), workers=1)
    said = "\n".join(main(asked).summary)
    assert "Files beside the images that were not read: 3 .txt. Captions and labels go in" in said
    assert "Tables that were not read: 1 .csv." in said
    assert "All have the label 'all', the first part of their path" in said
    nearer = asked.model_copy(
        update={"source": (str(tmp_path / "in/all"),), "output": str(tmp_path / "o")}
    )
    assert "All have the label" not in "\n".join(main(nearer).summary)


def test_what_a_source_holds_no_more_is_told_and_stays_until_it_is_removed(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(4)})
    pack(config(folder, tmp_path / "out"))
    other = write(tmp_path / "other", {"5.png": png(5)})
    assert pack(config(other, tmp_path / "out", append=True)).left_behind == (0, "")
    for number in (1, 2):
        path = tmp_path / f"in/{number}.png"
        with Image.open(path) as image:
            image.convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    result = pack(config(folder, tmp_path / "out", append=True))
    assert (result.added, result.samples, result.left_behind) == (2, 7, (2, "1.png"))
    assert result.to_json()["left_behind"] == 2
    assert any("2 samples are of files" in line for line in _summary(config(folder, "x"), result))
    gone = ("1.png", "2.png")
    result = pack(config(folder, tmp_path / "out", append=True, remove=gone))
    assert (result.samples, result.left_behind) == (5, (0, ""))
