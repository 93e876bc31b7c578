from typing import Any

import pyarrow as pa
import pytest

from pipeline.data.column_types import (
    arrow_array,
    arrow_type,
    holds,
    is_kind,
    kept_kind,
    merged,
    note_columns,
    vector_size,
)
from pipeline.errors import DatasetError


def kinds_of(*values: Any) -> Any:
    kinds: dict[str, str] = {}
    for value in values:
        note_columns(kinds, {"x": value})
    return kinds["x"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1, 2), "int64"), ((1, 2.5), "double"), ((True, False), "bool"), (("a", None), "string"),
        (([1.0, 2.0], [3.0, 4.0]), "list<double>[2]"), (([1], [2, 3]), "list<int64>"),
        ((["a"], ["b", "c"]), "list<string>"), ((1, "a"), "json"), ((True, 1), "json"),
        (([[1, 2]], [[3, 4]]), "list<list<int64>[2]>[1]"), (([1], [2.5]), "list<double>[1]"),
        (({"a": 1},), "json"),
    ],
)  # fmt: skip
def test_a_kind_holds_all_values_and_arrow_gives_them_back(values: Any, kind: Any) -> None:
    assert kinds_of(*values) == kind
    if kind != "json":
        assert arrow_array(list(values), kind).to_pylist() == list(values)


def test_merging_does_not_depend_on_the_order() -> None:
    kinds = ["", "int64", "double", "string", "bool", "json", "list<int64>[2]", "list<double>[2]",
             "list<int64>[3]", "list<string>"]  # fmt: skip
    for one in kinds:
        for other in kinds:
            assert merged(one, other) == merged(other, one)
            for third in kinds:
                assert merged(merged(one, other), third) == merged(one, merged(other, third))


def test_an_embedding_is_a_list_of_fixed_size() -> None:
    assert arrow_type("list<double>[768]") == pa.list_(pa.float64(), 768)


def test_a_value_of_another_kind_is_an_error_that_says_so() -> None:
    with pytest.raises(DatasetError, match="int64 holds other values"):
        arrow_array(["a"], "int64")


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("int64", "int64"), ("list<string>[2]", "list<string>"),
        ("list<double>[768]", "list<double>[768]"), ("list<list<string>[2]>[1]",
        "list<list<string>>"), ("list<list<int64>[2]>[3]", "list<list<int64>[2]>"),
    ],
)  # fmt: skip
def test_a_store_keeps_how_many_numbers_a_vector_has_and_not_how_many_captions(
    kind: str, kept: str
) -> None:
    assert kept_kind(kind) == kept
    assert holds(kept, kind)
    assert is_kind(kept)


def test_a_column_holds_what_its_kind_is_merged_with_to_itself() -> None:
    assert holds("double", "int64")
    assert not holds("int64", "double")
    assert not holds("list<double>[2]", "list<double>[3]")
    assert holds("json", "list<double>[3]")
    assert not is_kind("float")
    assert not is_kind("list<float>")
    assert (vector_size("list<double>[3]"), vector_size("list<int64>[3]")) == (3, None)
