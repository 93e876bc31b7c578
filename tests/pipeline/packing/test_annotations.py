import pytest

from pipeline import storage
from pipeline.errors import DatasetError
from pipeline.packing.annotations import annotation_of, check_matching, read_annotations


def table(tmp_path, text: str, name: str = "t.csv") -> str:
    storage.publish(str(tmp_path / name), text.encode())
    return str(tmp_path / name)


def test_rows_are_found_by_path_with_or_without_its_suffix(tmp_path):
    rows = read_annotations(table(tmp_path, "path,class,year\na/b.jpg,cat,1999\nc,dog,\n"))
    assert annotation_of(rows, "a/b.jpg").label == "cat"
    assert annotation_of(rows, "a/b.jpg").others == {"year": 1999}
    assert annotation_of(rows, "c.png").label == "dog"
    assert annotation_of(rows, "c.png").others == {}
    assert annotation_of(rows, "d.png") is None


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("name,label\na,b\n", "t.csv", "must name the image"),
        ("path,label\na,b\na,c\n", "t.csv", "twice"),
        ("path,label\na,b\n", "t.xlsx", "none of"),
    ],
)
def test_a_table_that_can_not_be_used_says_why(tmp_path, text, name, message):
    with pytest.raises(DatasetError, match=message):
        read_annotations(table(tmp_path, text, name))


def test_a_table_that_meets_no_image_is_an_error(tmp_path):
    url = table(tmp_path, "path,label\nx.jpg,b\n")
    with pytest.raises(DatasetError, match="none of its 1 rows"):
        check_matching(read_annotations(url), ["y.jpg"], url)
