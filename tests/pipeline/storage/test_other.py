import fsspec
import pytest

from pipeline import storage
from pipeline.errors import StorageError


def test_another_fsspec_filesystem_is_read_and_listed_but_not_written() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/other-room/a", b"0123456789")
    assert storage.read("memory://other-room/a", 2, 5) == b"234"
    assert storage.stat("memory://other-room/a").size == 10
    assert [info.size for info in storage.list_objects("memory://other-room")] == [10]
    with pytest.raises(StorageError, match=r"local folders and s3://"):
        storage.publish("memory://other-room/b", b"")
