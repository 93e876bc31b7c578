import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.errors import DatasetError, SampleError, StorageShortageError
from pipeline.sources import archives
from pipeline.sources.archives import MemberPlace, forget_unpacked, members_of, read_member
from pipeline.sources.listing import list_sources

FILES = {"a/one.png": b"1" * 700, "two.jpg": b"22", "empty.png": b""}


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd,
}


@pytest.fixture(autouse=True)
def unpacked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    forget_unpacked()


def tag(path: Path | str) -> str:
    return storage.stat(str(path)).etag or ""


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as writer:
        writer.addfile(tarfile.TarInfo("folder"))
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            writer.addfile(info, io.BytesIO(data))
        last = tarfile.TarInfo("last")
        last.type = tarfile.DIRTYPE
        writer.addfile(last)
    return buffer.getvalue()


def place(member: Any) -> MemberPlace:
    return MemberPlace(member.offset, member.member, member.inner, member.size)


def contents(url: str) -> dict[str, bytes]:
    return {
        member.name: read_member(url, member.etag, place(member))
        for member in members_of(url, tag(url))
        if member.kind == "file" and member.name != "folder"
    }


@pytest.mark.parametrize("kind", ["", *PACKERS])
def test_the_members_of_a_tar_are_read_whether_it_is_compressed_or_not(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"x.tar{'.' if kind else ''}{kind}"
    path.write_bytes(PACKERS.get(kind, bytes)(tar(FILES)))
    assert contents(str(path)) == FILES


@pytest.mark.parametrize("kind", PACKERS)
def test_a_compressed_tar_that_is_cut_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"x.tar.{kind}"
    path.write_bytes(PACKERS[kind](tar(FILES))[:-20])
    with pytest.raises(DatasetError, match=r"x.tar.*whole|x.tar.*cut"):
        list(members_of(str(path), tag(path)))
    assert not list(archives._folder().rglob("*part*"))


def test_a_tar_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = tar(FILES)
    end = data.rindex(b"last") + 512
    path = tmp_path / "x.tar"
    for cut in range(0, end + 1, 256):
        path.write_bytes(data[:cut])
        with pytest.raises(DatasetError):
            list(members_of(str(path), tag(path)))


def test_who_has_an_unpacked_tar_open_reads_on_when_another_pack_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(tar(FILES)))
    found = {member.name: member for member in members_of(str(path), tag(path))}
    for file in archives._folder().iterdir():
        file.unlink()
    one = found["a/one.png"]
    assert read_member(str(path), tag(path), place(one)) == FILES["a/one.png"]


def test_the_end_of_another_pack_leaves_what_is_being_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(tar(FILES)))
    unpack = archives._unpack

    def while_another_ends(*what: Any) -> None:
        forget_unpacked()
        unpack(*what)

    monkeypatch.setattr(archives, "_unpack", while_another_ends)
    assert contents(str(path)) == FILES
    forget_unpacked()
    assert not archives._folder().exists()


def test_the_end_of_another_pack_between_making_the_folder_and_using_it_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(gzip.compress(tar(FILES)))
    ends, make = iter([True, False]), Path.mkdir

    def made_and_removed(folder: Any, *args: Any, **options: Any) -> None:
        make(folder, *args, **options)
        if folder == archives._folder() and next(ends, False):
            forget_unpacked()

    monkeypatch.setattr(Path, "mkdir", made_and_removed)
    assert contents(str(path)) == FILES


def test_a_compressed_tar_is_a_source_as_a_plain_one_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.tar.gz").write_bytes(gzip.compress(tar(FILES)))
    files = list(list_sources([str(tmp_path / "in")]))
    assert {file.path: file.read() for file in files} == {
        f"x/{name}": data for name, data in FILES.items()
    }


def test_a_zip_s_member_is_read_by_name_and_a_damaged_one_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"stored bytes")
    (member,) = members_of(str(path), tag(path))
    assert read_member(str(path), member.etag, place(member)) == b"stored bytes"
    path.write_bytes(path.read_bytes().replace(b"stored", b"stoRed"))
    with pytest.raises(SampleError) as raised:
        read_member(str(path), member.etag, place(member))
    assert raised.value.reason == "archive"


def test_two_packs_at_once_hold_the_folder_that_is_there(tmp_path: Path) -> None:
    handles = [archives._hold_folder() for _ in range(2)]
    assert os.path.samestat(*map(os.fstat, handles))
    for handle in handles:
        os.close(handle)


@pytest.mark.parametrize(("left", "fits"), [(2**30, True), (2**30 - 1, False)])
def test_unpacking_leaves_one_gib_of_the_disk_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, fits: bool
) -> None:
    path, data = tmp_path / "x.tar.gz", tar(FILES)
    path.write_bytes(gzip.compress(data))
    usage = shutil.disk_usage(tmp_path)._replace(free=left + len(data))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    if fits:
        assert contents(str(path)) == FILES
        return
    with pytest.raises(StorageShortageError, match="does not fit unpacked"):
        contents(str(path))
