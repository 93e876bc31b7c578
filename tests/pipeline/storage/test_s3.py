import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline import storage
from pipeline.data import Dataset
from pipeline.errors import BucketNotFoundError, DatasetError, ObjectNotFoundError
from tests.servers import rgw


@pytest.fixture
def bucket(s3_server: rgw.S3Server) -> str:
    return s3_server.bucket()


def test_an_object_above_the_part_size_comes_back_byte_for_byte(bucket: str) -> None:
    data = os.urandom(50 * 2**20)
    storage.publish(f"{bucket}/big", data)
    assert storage.read(f"{bucket}/big") == data
    assert (
        storage.read(f"{bucket}/big", 49 * 2**20 - 3, 49 * 2**20 + 5) == data[49 * 2**20 - 3 :][:8]
    )
    assert storage.read(f"{bucket}/big", len(data) - 2, len(data) + 9) == data[-2:]
    assert storage.stat(f"{bucket}/big").size == len(data)


def test_an_empty_object_and_a_range_behind_the_end_are_empty(bucket: str) -> None:
    storage.publish(f"{bucket}/empty", b"")
    assert storage.read(f"{bucket}/empty") == b""
    assert storage.read(f"{bucket}/empty", 5, 9) == b""


def test_exactly_one_of_many_creators_wins_on_s3(bucket: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(
            pool.map(lambda n: storage.create_if_absent(f"{bucket}/claim", b"%d" % n), range(24))
        )
    assert sum(won) == 1
    assert storage.read(f"{bucket}/claim") == b"%d" % won.index(True)


def test_a_listing_is_sorted_and_a_prefix_is_a_whole_folder(bucket: str) -> None:
    for key in ("p/b", "p/a/x", "p/a.c", "pq/z"):
        storage.publish(f"{bucket}/{key}", b"1")
    found = [info.url for info in storage.list_objects(f"{bucket}/p")]
    assert found == [f"{bucket}/{key}" for key in ("p/a.c", "p/a/x", "p/b")]


def test_missing_objects_and_buckets_are_told_apart(bucket: str) -> None:
    with pytest.raises(ObjectNotFoundError, match="no such object"):
        storage.read(f"{bucket}/nothing")
    with pytest.raises(ObjectNotFoundError, match="bucket does not exist"):
        storage.stat("s3://no-such-bucket-anywhere/x")
    storage.delete(f"{bucket}/nothing")
    with pytest.raises(BucketNotFoundError, match="bucket does not exist"):
        Dataset.open("s3://no-such-bucket-anywhere/photos/train")
    with pytest.raises(DatasetError, match="Pack images first"):
        Dataset.open(f"{bucket}/photos/train")


def test_a_wrong_secret_is_refused_at_once_and_not_shown(bucket: str) -> None:
    code = f"from pipeline import storage; storage.read('{bucket}/x')"
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30
    )
    last = found.stderr.splitlines()[-1]
    assert "AccessDeniedError" in last
    assert "not-the-secret" not in found.stderr
