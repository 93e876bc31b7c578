from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.errors import AccessDeniedError, ObjectNotFoundError, StorageError
from pipeline.storage import local


def test_a_published_object_reads_back_whole_and_in_ranges(tmp_path: Path) -> None:
    url = str(tmp_path / "deep/er/file")
    storage.publish(url, b"0123456789")
    assert storage.read(url) == b"0123456789"
    assert storage.read(url, 3, 5) == b"34"
    assert storage.read(url, 8, 100) == b"89"
    assert storage.read(url, 20, 30) == b""


def test_exactly_one_of_many_creators_wins(tmp_path: Path) -> None:
    for race in range(10):
        url = str(tmp_path / f"claim{race}")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda n, u=url: storage.create_if_absent(u, b"%d" % n), range(16)))
        assert sum(won) == 1
        assert storage.read(url) == b"%d" % won.index(True)


def test_a_listing_is_in_the_order_of_whole_paths_and_hides_unfinished_files(
    tmp_path: Path,
) -> None:
    for name in ("a/x", "a.b", "a-c", "z"):
        storage.publish(str(tmp_path / name), b"")
    storage.scratch(str(tmp_path / "unfinished")).write_bytes(b"half")
    found = [info.url for info in storage.list_objects(str(tmp_path))]
    assert found == sorted(str(tmp_path / name) for name in ("a/x", "a.b", "a-c", "z"))


@pytest.mark.parametrize(
    ("links", "named"),
    [
        ({"in/circle": "in"}, "in/circle"),
        ({"in/circle": "."}, "in/circle"),
        ({"in/a/x": "in/b", "in/b/y": "in/a"}, "in/a/x/y"),
        ({"in/self": "in/self"}, "in/self"),
    ],
)
def test_links_that_go_in_a_circle_dangle_where_the_circle_closes(
    tmp_path: Path, links: dict[str, Any], named: str
) -> None:
    for folder in ("in/a", "in/b"):
        storage.publish(str(tmp_path / folder / "0.png"), b"")
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    found = list(storage.list_objects(str(tmp_path / "in"), dangling=True))
    urls = [info.url for info in found if info.size >= 0]
    assert {str(tmp_path / "in" / name / "0.png") for name in "ab"} <= set(urls)
    assert str(tmp_path / named) in [info.url for info in found if info.size < 0]
    assert [info.url for info in storage.list_objects(str(tmp_path / "in"))] == urls


def test_two_links_to_one_folder_are_both_listed(tmp_path: Path) -> None:
    storage.publish(str(tmp_path / "elsewhere/x"), b"")
    (tmp_path / "in").mkdir()
    for link in "ab":
        (tmp_path / "in" / link).symlink_to(tmp_path / "elsewhere")
    found = [info.url for info in storage.list_objects(str(tmp_path / "in"))]
    assert found == [str(tmp_path / "in/a/x"), str(tmp_path / "in/b/x")]


def test_a_scratch_file_becomes_the_object_without_a_copy(tmp_path: Path) -> None:
    url = str(tmp_path / "big")
    scratch = storage.scratch(url)
    scratch.write_bytes(b"x" * 1000)
    inode = scratch.stat().st_ino
    storage.publish(url, scratch)
    assert (tmp_path / "big").stat().st_ino == inode
    assert not scratch.exists()


def test_what_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    for act in (storage.read, storage.stat, lambda url: list(storage.list_objects(url))):
        with pytest.raises(ObjectNotFoundError, match="nothing-here"):
            act(str(tmp_path / "nothing-here"))
    storage.delete(str(tmp_path / "nothing-here"))


def test_a_rewritten_file_gets_another_tag(tmp_path: Path) -> None:
    url = str(tmp_path / "file")
    storage.publish(url, b"one")
    before = storage.stat(url).etag
    storage.publish(url, b"two")
    assert storage.stat(url).etag != before


def test_json_that_is_none_is_a_storage_error(tmp_path: Path) -> None:
    url = str(tmp_path / "x.json")
    storage.publish(url, b"{not json")
    with pytest.raises(StorageError, match="holds no JSON"):
        storage.read_json(url)


def test_equal_json_values_have_equal_bytes() -> None:
    assert storage.canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}\n'.encode()


@pytest.mark.parametrize("write", [storage.publish, storage.create_if_absent])
def test_a_write_that_fails_leaves_none_of_the_folders_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Any]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    storage.publish(str(tmp_path / "there/file"), b"")
    monkeypatch.setattr("pipeline.storage.local._write", full)
    for name in ("there/a/b/c", "new/a/b"):
        with pytest.raises(StorageError, match="No space left"):
            write(str(tmp_path / name), b"x")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "there", "there/file",
    ]  # fmt: skip


def test_a_file_that_may_not_be_read_is_no_passing_error(tmp_path: Path) -> None:
    # Tests that run as root meet no such file.
    error = local.explain(PermissionError(13, "Permission denied"), tmp_path / "f", "reading")
    assert isinstance(error, AccessDeniedError)
    assert str(tmp_path / "f") in str(error)


def test_json_of_exactly_the_limit_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'"12345678"')
    assert storage.read_json(str(tmp_path / "j"), 10) == "12345678"
    with pytest.raises(StorageError, match="more than 9 bytes"):
        storage.read_json(str(tmp_path / "j"), 9)
