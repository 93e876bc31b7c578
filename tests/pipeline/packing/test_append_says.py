"""What an append takes out again: asked-for removals, labels, rejects that are gone."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import pack as job
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from pipeline.packing.verify_dataset import verify_dataset
from tests.pipeline.packing.test_pack import config, contents, png, write


def said(asked: Any) -> tuple[Any, str]:
    outcome = job.main(asked)
    return outcome.result, "\n".join(outcome.summary)


def told(folder: Path) -> dict[str, Any]:
    return {key: meta for key, (_, meta, _) in contents(str(folder)).items()}


def test_a_removal_is_told_and_counted_by_the_run_that_removes(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"k/{n}.png": png(n) for n in range(4)})
    pack(config(source, tmp_path / "out"))
    write(tmp_path / "in", {"k/0.png": png(9)})  # removed though it changed in the same night
    asked = config(source, tmp_path / "out", append=True, remove=("k/0.png", "k/1.png"))
    result, text = said(asked)
    law = "4 seen = 2 packed + 0 duplicates + 0 rejected + 2 ignored."
    assert law in text
    assert "2 inputs removed now, as `--remove` asked" in text
    assert (result["packed"], result["samples"], result["removed"]) == (2, 2, 2)
    _, text = said(config(source, tmp_path / "out", append=True))
    assert law in text
    assert "removed now" not in text


def test_a_duplicate_that_is_removed_is_one_less_at_once(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(7) for n in range(3)})
    out = tmp_path / "out"
    pack(config(source, out, deduplicate=True))
    (kept,) = contents(str(out))
    gone = next(f"{n}.png" for n in range(3) if kept != f"{n}%2Epng")
    listed = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert {(row["reason"], row["message"]) for row in listed} == {
        ("duplicate", f"had the same bytes as {kept.replace('%2E', '.')}")
    }
    assert sorted(row["path"] for row in [*listed, {"path": kept.replace("%2E", ".")}]) == [
        "0.png", "1.png", "2.png"
    ]  # fmt: skip
    _, text = said(config(source, out, append=True, deduplicate=True, remove=(gone,)))
    assert "3 seen = 1 packed + 1 duplicates + 0 rejected + 1 ignored." in text
    assert "No sample is new" not in text
    assert "1 input removed now" in text


def test_a_label_whose_row_or_cell_is_gone_is_gone_as_in_a_fresh_pack(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(4)})
    table = tmp_path / "t.csv"
    table.write_text("path,label\n0.png,a\n1.png,b\n2.png,c\n3.png,d\n")
    annotations = {"annotations": str(table)}
    pack(config(source, tmp_path / "out", **annotations))
    # A pack without a table leaves what the table said.
    pack(config(source, tmp_path / "out", append=True))
    assert sorted(meta["label"] for meta in told(tmp_path / "out").values()) == list("abcd")
    table.write_text("path,label\n0.png,a\n1.png,\n3.png,d\n")
    _, text = said(config(source, tmp_path / "out", append=True, **annotations))
    assert "Of 2 samples an earlier table said something, and this one says nothing" in text
    fresh = pack(config(source, tmp_path / "fresh", **annotations))
    assert told(tmp_path / "out") == told(tmp_path / "fresh")
    again = pack(config(source, tmp_path / "out", append=True, **annotations))
    assert (again.generation, again.samples, again.added) == (2, fresh.samples, 0)


def test_folder_names_beside_a_table_s_labels_are_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"k/{n}.png": png(n) for n in range(3)})
    (tmp_path / "t.csv").write_text("path,label\nk/0.png,a\n")
    _, text = said(config(source, tmp_path / "out", annotations=str(tmp_path / "t.csv")))
    assert "Without a label in a table: 2 inputs, labelled by the first folder's name." in text
    (tmp_path / "u.csv").write_text("path,caption\nk/0.png,a\n")
    _, text = said(config(source, tmp_path / "other", annotations=str(tmp_path / "u.csv")))
    assert "Without a label in a table" not in text


def test_nan_is_no_label_in_any_table_and_a_doubled_key_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{n}.png": png(n) for n in range(2)})
    (tmp_path / "t.csv").write_text("path,label,n\n0.png,NaN,1\n1.png,a,NaN\n")
    (tmp_path / "t.jsonl").write_text(
        '{"path": "0.png", "label": NaN, "n": 1}\n{"path": "1.png", "label": "a", "n": NaN}\n'
    )
    for name in ("t.csv", "t.jsonl"):
        pack(config(source, tmp_path / name[2:], annotations=str(tmp_path / name)))
        assert told(tmp_path / name[2:]) == {
            "0%2Epng": {"path": "0.png", "n": 1}, "1%2Epng": {"path": "1.png", "label": "a"}
        }  # fmt: skip
    (tmp_path / "t.jsonl").write_text('{"path": "0.png", "label": "a", "label": "b"}\n')
    with pytest.raises(DatasetError, match=r"line 1 is no JSON \(the key 'label' is there twice"):
        pack(config(source, tmp_path / "twice", annotations=str(tmp_path / "t.jsonl")))


def test_rejects_that_the_source_holds_no_more_leave_the_list_and_are_new_when_back(
    tmp_path: Path,
) -> None:
    bad = {"c/bad.png": b"x", "c/worse.png": b"y"}
    source = write(tmp_path / "in", {"c/0.png": png(0), **bad})
    out = tmp_path / "out"
    pack(config(source, out))
    mine = config(source, out, append=True)
    times = (tmp_path / "in/c/bad.png").stat()
    (tmp_path / "in/c/bad.png").rename(tmp_path / "aside")
    assert pack(mine).rejected == 1
    listed = [json.loads(line)["path"] for line in (out / "rejects.jsonl").read_text().splitlines()]
    assert listed == ["c/worse.png"]
    (tmp_path / "in/c/worse.png").unlink()
    _, text = said(mine)
    assert "1 seen = 1 packed + 0 duplicates + 0 rejected + 0 ignored." in text
    assert "rejects.jsonl" not in text
    assert not (out / "rejects.jsonl").exists()
    (tmp_path / "aside").rename(tmp_path / "in/c/bad.png")
    assert (tmp_path / "in/c/bad.png").stat().st_mtime_ns == times.st_mtime_ns
    back = pack(mine)
    assert (back.seen, back.rejected, back.samples) == (2, 1, 1)
    assert verify_dataset(str(out)) == []
    again = pack(mine)
    assert (again.generation, again.counts) == (back.generation, back.counts)
