from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.sources.listing import Listing, list_sources
from pipeline.sources.source_file import SourceFile


@pytest.mark.parametrize(
    ("path", "key", "label"),
    [
        ("cats/a.b.jpg", "cats/a%2Eb%2Ejpg", "cats"),
        ("../x.png", "%2E%2E/x%2Epng", None),
        ("/etc/x.png", "etc/x%2Epng", "etc"),
        ("é 1.png", "%C3%A9%201%2Epng", None),
        ("train/cats/1.webp", "train/cats/1%2Ewebp", "train"),
    ],
)
def test_a_key_has_no_dot_and_leads_nowhere(path: str, key: str, label: str | None) -> None:
    file = SourceFile(path, "x", 1, "")
    assert (file.key, file.label) == (key, label)


def test_what_is_no_image_is_counted_by_suffix_and_hidden_files_are_left_out(
    tmp_path: Path,
) -> None:
    for name in ("a.jpg", "b.txt", "c.txt", ".hidden.jpg", "._a.jpg"):
        (tmp_path / name).write_bytes(b"x")
    listing = Listing()
    found = {file.path: file.reason for file in list_sources([str(tmp_path)], listing)}
    assert found == {"a.jpg": "", ".hidden.jpg": "hidden", "._a.jpg": "hidden"}
    assert (listing.seen, listing.others) == (3, {".txt": 2})


def test_the_order_of_packing_does_not_follow_the_names(tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n:03d}.jpg").touch()
    files = sorted(list_sources([str(tmp_path)]), key=lambda file: file.order)
    order = [int(file.path.removesuffix(".jpg")) for file in files]
    assert sorted(order) == list(range(100))
    descents = sum(a > b for a, b in pairwise(order))
    assert 30 < descents < 70, "a random order of 100 has 49.5 descents on average"
