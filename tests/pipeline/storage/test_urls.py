from pathlib import Path

import pytest

from pipeline.errors import StorageError
from pipeline.storage.urls import below, bucket_and_key, join, local_path, protocol, shown


@pytest.mark.parametrize(
    ("url", "parts", "expected"),
    [
        ("s3://b/p", ("x",), "s3://b/p/x"),
        ("s3://b/", ("x", "y"), "s3://b/x/y"),
        ("/a/b", ("c",), "/a/b/c"),
        ("runs", ("c",), "runs/c"),
        ("/a", ("s3://b/x",), "s3://b/x"),
    ],
)
def test_parts_are_joined_below_any_kind_of_url(
    url: str, parts: tuple[str, ...], expected: str
) -> None:
    assert join(url, *parts) == expected


def test_only_plain_paths_and_file_urls_are_local() -> None:
    assert local_path("/a/b") == Path("/a/b")
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("s3://a/b") is None
    assert protocol("simplecache::s3://a/b") == "simplecache"


def test_messages_show_no_password_and_no_signature() -> None:
    text = shown("https://user:secret@host/x?X-Amz-Signature=abcdef")
    assert "secret" not in text
    assert "abcdef" not in text
    assert "host/x" in text


def test_an_s3_url_is_a_bucket_and_a_key() -> None:
    assert bucket_and_key("s3://bucket/a/b c.jpg") == ("bucket", "a/b c.jpg")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "s3://b/x", "..", "a\0b"])
def test_a_name_from_a_file_does_not_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(StorageError, match="leads out"):
        below("s3://bucket/folder", name)


def test_a_name_that_only_looks_so_stays_below() -> None:
    assert below("s3://bucket/folder", "a/..b/...c") == "s3://bucket/folder/a/..b/...c"
