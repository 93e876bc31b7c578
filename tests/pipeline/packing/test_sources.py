from itertools import pairwise

import pytest

from pipeline.errors import DatasetError
from pipeline.packing.sources import SourceFile, list_sources


@pytest.mark.parametrize(
    ("path", "key", "label"),
    [
        ("cats/a.b.jpg", "cats/a%2Eb", "cats"),
        ("../x.png", "%2E%2E/x", ".."),
        ("/etc/x.png", "etc/x", "etc"),
        ("é 1.png", "%C3%A9%201", None),
        ("train/cats/1.webp", "train/cats/1", "train"),
    ],
)
def test_a_key_has_no_dot_and_leads_nowhere(path, key, label):
    file = SourceFile(path, "x", 1, "")
    assert (file.key, file.label) == (key, label)


def test_what_is_no_image_is_counted_by_suffix_and_hidden_files_are_left_out(tmp_path):
    for name in ("a.jpg", "b.txt", "c.txt", ".hidden.jpg", "._a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    listing = list_sources([str(tmp_path)])
    assert [file.path for file in listing.files] == ["a.jpg"]
    assert listing.ignored == {".txt": 2, "hidden": 2}


def test_the_order_of_packing_does_not_follow_the_names(tmp_path):
    for n in range(100):
        (tmp_path / f"{n:03d}.jpg").touch()
    order = [int(file.key) for file in list_sources([str(tmp_path)]).files]
    assert sorted(order) == list(range(100))
    descents = sum(a > b for a, b in pairwise(order))
    assert 30 < descents < 70, "a random order of 100 has 49.5 descents on average"


def test_all_files_that_would_share_a_key_are_counted_and_some_named(tmp_path):
    for n in range(7):
        for suffix in ("gif", "jpg"):
            (tmp_path / f"{n}.{suffix}").touch()
    with pytest.raises(DatasetError, match="7 pairs") as caught:
        list_sources([str(tmp_path)])
    assert str(caught.value).count("both") == 5
