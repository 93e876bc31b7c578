"""Appends: a kept copy, a source, a row of a list or an archive is no more what it was."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from jobs.pack import _summary
from pipeline.errors import DatasetError
from pipeline.packing.commit import PackResult
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import packed
from tests.pipeline.packing.test_pack import config, png, write


def images(result: PackResult) -> list[bytes]:
    return sorted(image for image, _ in packed(result).values())


def later(folder: Path, files: dict[str, bytes]) -> None:
    """Writes over files, at a time that no file system takes for the same."""
    write(folder, files)
    for name in files:
        moment = (folder / name).stat().st_mtime_ns + 2 * 10**9
        os.utime(folder / name, ns=(moment, moment))


def with_a_copy(tmp_path: Path) -> tuple[str, str, str]:
    """A dataset without its copy; the source, which path was kept, which was left out."""
    folder = write(tmp_path / "in", {"a.png": png(1), "b.png": png(1), "c.png": png(2)})
    pack(config(folder, tmp_path / "out", deduplicate=True))
    (row,) = map(json.loads, (tmp_path / "out/rejects.jsonl").read_text().splitlines())
    return folder, "b.png" if row["path"] == "a.png" else "a.png", row["path"]


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("what", ["overwritten", "bad", "removed", "moved away and removed"])
def test_a_duplicate_is_taken_when_the_copy_that_was_kept_goes(
    tmp_path: Path, what: str, deduplicate: bool
) -> None:
    folder, kept, left_out = with_a_copy(tmp_path)
    options: dict[str, object] = {"append": True, "deduplicate": deduplicate}
    if what == "overwritten":
        later(tmp_path / "in", {kept: png(9)})
    elif what == "bad":
        later(tmp_path / "in", {kept: b"bad"})
        options["bad_fraction"] = 1
    elif what == "moved away and removed":
        (tmp_path / "in" / kept).unlink()
    removal = {"remove": (kept,)} if "removed" in what else {}
    result = pack(config(folder, tmp_path / "out", **options, **removal))
    assert images(result) == sorted([png(1), png(2), *([png(9)] if what == "overwritten" else [])])
    assert left_out in packed(result)
    assert (result.added, result.counts.duplicates) == (1 + (what == "overwritten"), 0)
    again = pack(config(folder, tmp_path / "out", **options))
    assert (again.added, again.generation) == (0, result.generation)


def test_of_several_duplicates_one_is_taken_and_none_while_the_kept_one_stays(
    tmp_path: Path,
) -> None:
    folder, kept, _ = with_a_copy(tmp_path)
    write(tmp_path / "in", {"d.png": png(1)})
    later(tmp_path / "in", {kept: png(1)})  # touched: its bytes are the same
    result = pack(config(folder, tmp_path / "out", append=True, deduplicate=True))
    assert (images(result), result.counts.duplicates) == (sorted([png(1), png(2)]), 2)
    assert kept in packed(result)
    result = pack(config(folder, tmp_path / "out", append=True, remove=(kept,)))
    assert (images(result), result.counts.duplicates) == (sorted([png(1), png(2)]), 1)
    assert kept not in packed(result)


def test_a_duplicate_comes_in_by_a_later_append_where_the_removal_named_no_source(
    tmp_path: Path,
) -> None:
    folder, kept, left_out = with_a_copy(tmp_path)
    alone = config(folder, tmp_path / "out", append=True, remove=(kept,))
    assert pack(alone.model_copy(update={"source": ()})).samples == 1
    result = pack(config(folder, tmp_path / "out", append=True, deduplicate=True))
    assert set(packed(result)) == {left_out, "c.png"}


@pytest.mark.parametrize("name", ["folder", "zip", "list"])
@pytest.mark.parametrize("first", ["outer", "inner"])
def test_a_file_is_refused_that_another_source_brought_in_by_an_earlier_pack(
    tmp_path: Path, name: str, first: str
) -> None:
    outer = write(tmp_path / "in", {"cat/1.png": png(1), "dog/2.png": png(2)})
    inner = f"{outer}/cat"
    if name == "zip":
        inner = f"{outer}/more.zip"
        with zipfile.ZipFile(inner, "w") as archive:
            archive.writestr("3.png", png(3))
    elif name == "list":
        inner = str(tmp_path / "list.csv")
        Path(inner).write_text("path\nin/cat/1.png\n")
    now, then = (outer, inner) if first == "inner" else (inner, outer)
    before = pack(config(then, tmp_path / "out"))
    for given in (now, f"{now}/" if name == "folder" or first == "inner" else now):
        with pytest.raises(DatasetError, match=r"is in this dataset as .* packed twice") as error:
            pack(config(given, tmp_path / "out", append=True, deduplicate=True))
        assert "\n" not in str(error.value)
        assert then in str(error.value)
    old = tuple(packed(before))
    result = pack(config(now, tmp_path / "out", append=True, remove=old, below=(str(tmp_path),)))
    assert result.removed == len(old)
    if name != "zip":
        back = pack(config(then, tmp_path / "out", append=True))
        assert back.left_behind == (0, "")  # what is there under another path is there
    assert pack(config([then], tmp_path / "other", append=True)).samples == before.samples


def test_neighbours_of_a_source_are_no_part_of_it(tmp_path: Path) -> None:
    write(tmp_path, {"in/cat/1.png": png(1), "in/cats/1.png": png(2), "in/dog/cat/1.png": png(3)})
    pack(config(str(tmp_path / "in/cat"), tmp_path / "out"))
    write(tmp_path, {"in/cats/2.png": png(4)})
    beside = [str(tmp_path / "in/dog")]
    assert pack(config(beside, tmp_path / "out", append=True)).samples == 2


def test_a_row_that_left_a_list_is_told_and_what_it_named_is_no_reject_any_more(
    tmp_path: Path,
) -> None:
    write(tmp_path / "in", {"f/0.png": png(0), "f/1.png": png(1), "f/bad.png": b"x"})
    table = tmp_path / "in/l.csv"
    table.write_text("path\nf/0.png\nf/1.png\nf/bad.png\nf/gone.png\n")
    other = write(tmp_path / "other", {"9.png": png(9)})
    options = {"append": True, "bad_fraction": 1}
    first = pack(config(str(table), tmp_path / "out", **options))
    assert (first.samples, first.rejected) == (2, 2)
    table.write_text("path\nf/1.png\n")
    result = pack(config(other, tmp_path / "out", **options))
    assert result.left_behind == (0, "")  # the list was not read
    assert len((tmp_path / "out/rejects.jsonl").read_text().splitlines()) == 2
    result = pack(config(str(table), tmp_path / "out", **options))
    assert (result.samples, result.left_behind) == (3, (1, "f/0.png"))
    assert not (tmp_path / "out/rejects.jsonl").exists()
    result = pack(config(str(table), tmp_path / "out", remove=("f/0.png",), **options))
    assert (result.samples, result.left_behind) == (2, (0, ""))


def test_of_two_lists_one_alone_says_nothing_of_what_the_other_named(tmp_path: Path) -> None:
    write(tmp_path / "in", {"f/0.png": png(0), "f/1.png": png(1), "f/2.png": png(2)})
    one, two = tmp_path / "in/one.csv", tmp_path / "in/two.jsonl"
    one.write_text("path\nf/0.png\nf/1.png\n")
    two.write_text('{"path": "f/2.png"}\n')
    pack(config([str(one), str(two)], tmp_path / "out"))
    one.write_text("path\nf/1.png\n")
    assert pack(config(str(one), tmp_path / "out", append=True)).left_behind == (0, "")
    both = pack(config([str(one), str(two)], tmp_path / "out", append=True))
    assert both.left_behind == (1, "f/0.png")


def test_of_an_archive_that_is_cut_this_time_nothing_is_said_to_be_gone(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"0.png": png(0), "1.png": png(1)})
    path = tmp_path / "in/a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("2.png", png(2))
        archive.writestr("bad.png", b"x")
    options = {"append": True, "bad_fraction": 1}
    assert pack(config(folder, tmp_path / "out", **options)).samples == 3
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    (tmp_path / "in/1.png").unlink()
    result = pack(config(folder, tmp_path / "out", **options))
    assert (result.samples, result.left_behind) == (3, (1, "1.png"))
    told = (tmp_path / "out/rejects.jsonl").read_text()
    assert '"path":"a/bad.png"' in told
    assert '"reason":"unreadable"' in told
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("3.png", png(3))
    result = pack(config(folder, tmp_path / "out", **options))
    assert (result.samples, result.left_behind) == (4, (2, "1.png"))
    assert not (tmp_path / "out/rejects.jsonl").exists()


def test_all_that_sources_hold_no_more_is_listed_as_remove_takes_it(tmp_path: Path) -> None:
    names = ["a b.png", "c/d.x.png", "é.png", "stays.png"]
    folder = write(tmp_path / "in", {name: png(n) for n, name in enumerate(names)})
    pack(config(folder, tmp_path / "out"))
    for name in names[:3]:
        (tmp_path / "in" / name).unlink()
    result = pack(config(folder, tmp_path / "out", append=True))
    assert result.left_behind_url == str(tmp_path / "out/left-behind.txt")
    (line,) = [line for line in _summary(config(folder, "x"), result) if "hold no more" in line]
    assert line.startswith("3 samples are of files")
    assert line.endswith(f": {result.left_behind_url}")
    keys = (tmp_path / "out/left-behind.txt").read_text().splitlines()
    assert len(keys) == 3
    result = pack(config(folder, tmp_path / "out", append=True, remove=tuple(keys)))
    assert (set(packed(result)), result.removed) == ({"stays.png"}, 3)
    assert (result.left_behind_url, (tmp_path / "out/left-behind.txt").exists()) == (None, False)


def test_of_copies_that_are_there_already_it_is_said_what_deduplicate_does_not(
    tmp_path: Path,
) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1), "b.png": png(1)})
    pack(config(folder, tmp_path / "out"))
    again = config(folder, tmp_path / "out", append=True, deduplicate=True)
    result = pack(again)
    assert (result.samples, result.copies) == (2, 1)
    (line,) = [line for line in _summary(again, result) if "exact" in line]
    assert line.startswith("1 sample is an exact copy of another. `--deduplicate` leaves out only")
    result = pack(config(folder, tmp_path / "out", append=True, remove=("b.png",)))
    assert (result.samples, result.copies) == (1, 0)
