from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import StorageError
from tests.servers.rgw import S3Server


def test_the_likest_name_beside_a_place_is_found_and_no_other(tmp_path: Path) -> None:
    for name in ("train", "holdout", "zebra"):
        (tmp_path / name).mkdir()
    assert storage.near(str(tmp_path / "trian")) == str(tmp_path / "train")
    assert storage.near(str(tmp_path / "something")) is None
    assert storage.near(str(tmp_path / "nowhere/at/all")) is None


def test_prefixes_of_a_bucket_are_names_too_and_a_bucket_has_none_beside(
    s3_server: S3Server,
) -> None:
    bucket = s3_server.bucket()
    storage.publish(f"{bucket}/photos/train/manifest.json", b"x")
    assert storage.near(f"{bucket}/photos/trian") == f"{bucket}/photos/train"
    assert storage.near(f"{bucket}/phtos") == f"{bucket}/photos"
    assert storage.near(f"{bucket}x") is None


def test_a_file_where_a_folder_must_be_is_named_with_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file is a file.*`--output URL`"):
        storage.refuse_file_above(str(tmp_path / "file/out"), "--output")
    storage.refuse_file_above(str(tmp_path / "new/out"), "--output")
