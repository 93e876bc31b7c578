"""The kinds of a dataset's columns: what lies beside each image in its .json, named and typed.

A kind is a text: `int64`, `double`, `bool`, `string`, `list<KIND>`, `list<KIND>[N]` where all lists
are of N values, or `json` for whatever has no one kind. `float32` is no kind of what lies beside
an image, but of the vectors that a store adds.
"""

import json
import re
from typing import Any

import pyarrow as pa

from pipeline.errors import DatasetError
from pipeline.json_value import Json

_LIST = re.compile(r"list<(.*)>(?:\[(\d+)\])?")


def kind_of_value(value: Any) -> str:
    """The kind of one value that JSON can hold; "" for None."""
    if isinstance(value, str):  # most of them
        return "string"
    if value is None:
        return ""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "json"
    for python, kind in ((bool, "bool"), (int, "int64"), (float, "double")):
        if isinstance(value, python):
            return kind
    if isinstance(value, list):
        inner = ""
        for each in value:
            inner = merged(inner, kind_of_value(each))
        return f"list<{inner or 'string'}>[{len(value)}]"
    return "json"


def merged(one: str, other: str) -> str:
    """A kind that holds the values of both."""
    if one == other or not other:
        return one
    if not one:
        return other
    if {one, other} == {"int64", "double"}:
        return "double"
    lists = _LIST.fullmatch(one), _LIST.fullmatch(other)
    if lists[0] is not None and lists[1] is not None:
        inner = merged(lists[0][1], lists[1][1])
        same = lists[0][2] == lists[1][2] and lists[0][2] is not None
        return f"list<{inner}>" + (f"[{lists[0][2]}]" if same else "")
    return "json"


def is_kind(text: str) -> bool:
    """Whether a text names a kind."""
    found = _LIST.fullmatch(text)
    if found is not None:
        return is_kind(found[1])
    return text in ("int64", "double", "bool", "string", "json")


def kept_kind(kind: str) -> str:
    """The kind in which a store keeps a column of this one: texts in a list may be more or fewer.

    Numbers in a list stay as many: that is what an embedding is.
    """
    found = _LIST.fullmatch(kind)
    if found is None:
        return kind
    inner = kept_kind(found[1])
    is_numbers = inner in ("int64", "double")
    return f"list<{inner}>" + (f"[{found[2]}]" if found[2] and is_numbers else "")


def holds(kind: str, other: str) -> bool:
    """Whether a column of `kind` can hold what one of the kind `other` has."""
    return kind in ("json", "string", "") or merged(kind, other) == kind


def vector_size(kind: str) -> int | None:
    """Numbers in each value of a column of real vectors; None for any other kind."""
    found = _LIST.fullmatch(kind)
    is_real = found is not None and found[1] in ("double", "float32")
    return int(found[2]) if found is not None and is_real and found[2] else None


def note_columns(kinds: dict[str, str], values: Json) -> None:
    """Widens `kinds` to hold the columns of one more sample."""
    for name, value in values.items():
        kind = kind_of_value(value)
        if kinds.get(name) != kind:
            kinds[name] = merged(kinds.get(name, ""), kind)


def arrow_type(kind: str) -> pa.DataType:
    """As a column of an Arrow table."""
    found = _LIST.fullmatch(kind)
    if found is not None:
        return pa.list_(arrow_type(found[1]), int(found[2]) if found[2] else -1)
    plain = {
        "int64": pa.int64(), "double": pa.float64(), "float32": pa.float32(), "bool": pa.bool_()
    }  # fmt: skip
    return plain.get(kind, pa.string())


def arrow_array(values: list[Any], kind: str) -> pa.Array:
    """Values of one column; of the kinds `string` and `json` whatever is no text becomes JSON."""
    if kind in ("json", "string", ""):
        values = [
            value if value is None or isinstance(value, str) else json.dumps(value)
            for value in values
        ]
    try:
        return pa.array(values, arrow_type(kind))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DatasetError(f"a column of the kind {kind} holds other values: {error}.") from None
