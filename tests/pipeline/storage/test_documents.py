"""A document is read only as what was written: its checksum, its kind, its types."""

import hashlib
from dataclasses import dataclass

import pytest

from pipeline.errors import RunError, StorageError
from pipeline.storage import DocumentKind, canonical_json, checksum_of, parse_json

KIND = DocumentKind("of/tests", 3, RunError, "Restore it.")


@dataclass(frozen=True)
class Record:
    """What is in it."""

    count: int
    names: tuple[str, ...]


def test_a_document_comes_back_as_it_was_and_names_the_checksum_of_all_that_follows_it() -> None:
    data = KIND.encode({"count": 2, "names": ["a", "ü"]})
    assert KIND.typed(Record, KIND.parse(data, "x"), "x") == Record(2, ("a", "ü"))
    rest = data.partition(b'",')[2]
    assert checksum_of(data) == hashlib.sha256(rest).hexdigest()
    assert data == KIND.encode({"names": ["a", "ü"], "count": 2})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (KIND.encode({"count": 2}).replace(b'"count":2', b'"count":3'), "its checksum is not that"),
        (KIND.encode({"count": 2}).replace(b":", b": ", 1), "its checksum is not that"),
        (b'{"count":2}\n', "is None version None"),
        (b"[]", "is no of/tests"),
        (b"{", "holds no JSON that is sane"),
        (DocumentKind("of/tests", 4, RunError, "").encode({}), "is 'of/tests' version 4"),
        (DocumentKind("other", 3, RunError, "").encode({}), "is 'other' version 3"),
    ],
)
def test_anything_else_is_refused_as_its_kind_says_and_by_its_name(data: bytes, said: str) -> None:
    with pytest.raises(RunError, match=rf"^place/x: {said}"):
        KIND.parse(data, "place/x")


def test_a_value_of_another_type_is_named_by_its_key() -> None:
    with pytest.raises(RunError, match=r"x: makes no sense \(names.1: .*string.*Restore it"):
        KIND.typed(Record, {"count": 1, "names": ["a", 2]}, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b"[1e999]", "not finite"),
        (b"[NaN]", "NaN is no number"),
        (b"[12345678901234567890]", "20 digits"),
        (b'["\\ud800"]', "half a character"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_json_that_readers_differ_on_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(StorageError, match=said):
        parse_json(text, "x")


def test_the_largest_number_of_a_machine_and_its_negative_are_read() -> None:
    assert parse_json(b"[9223372036854775807,-9223372036854775808]", "x") == [2**63 - 1, -(2**63)]


def test_one_value_has_one_spelling() -> None:
    assert canonical_json({"b": [1.5, None], "a": "é"}) == '{"a":"é","b":[1.5,null]}\n'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))
