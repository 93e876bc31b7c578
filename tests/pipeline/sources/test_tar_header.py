import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UnreadableError
from pipeline.sources.members import tar_headers
from pipeline.sources.tar_header import QuickHeader

NAMES = [
    "a.png", "folder/b c.png", "ünï/図.png", "x" * 99, "x" * 100, "x" * 101, "d/" * 60 + "deep.png",
    "y" * 300 + ".png", "caf\udce9.png",
]  # fmt: skip
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def archive(kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, errors="surrogateescape") as tar:
        for number, name in enumerate(NAMES):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uname = 700 * number, 1.5 * number, "who"
            try:
                tar.addfile(info, io.BytesIO(bytes(info.size)))
            except ValueError:  # USTAR has no room for it
                continue
        for kind_of_it, target in ((tarfile.DIRTYPE, ""), (tarfile.SYMTYPE, "a.png")):
            info = tarfile.TarInfo(f"other{target}")
            info.type, info.linkname = kind_of_it, target
            tar.addfile(info)
    return buffer.getvalue()


def members(data: bytes, header: Any) -> list[tuple[Any, ...]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=header) as tar:
        return [(m.name, m.size, m.type, m.linkname, m.offset, m.offset_data) for m in tar]


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_that_tarfile_finds(kind: int) -> None:
    data = archive(kind)
    assert members(data, QuickHeader) == members(data, tarfile.TarInfo)
    assert len(members(data, QuickHeader)) >= 8


@pytest.mark.parametrize("at", [0, 130, 150, 156, 257, 400, 511])
@pytest.mark.parametrize("byte", [0, 56, 255])
def test_a_header_with_a_wrong_byte_ends_as_in_tarfile(at: int, byte: int) -> None:
    data = bytearray(archive(tarfile.GNU_FORMAT))
    data[at] = byte
    endings = []
    for header in (QuickHeader, tarfile.TarInfo):
        try:
            endings.append(members(bytes(data), header))
        except tarfile.TarError as error:
            endings.append([(type(error), str(error))])
    assert endings[0] == endings[1]


def test_times_in_a_gnu_header_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "1.png").write_bytes(b"one")
    (tmp_path / "cats" / "2.png").symlink_to("1.png")
    incremental = ["tar", "--listed-incremental=state", "--format=gnu", "-cf", "i.tar", "cats"]
    subprocess.run(incremental, cwd=tmp_path, check=True)
    data = (tmp_path / "i.tar").read_bytes()
    assert data[345:357].strip(b"\0").isdigit(), "the times of access stand where POSIX has prefix"
    told = subprocess.run(
        ["tar", "-tf", "i.tar"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    names = [name for name, *_ in members(data, QuickHeader)]
    assert names == told.stdout.splitlines() == ["cats/", "cats/1.png", "cats/2.png"]


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g", b"X"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("size", [2**20 + 1, 1_500_000_000, 2**40])
def test_a_name_of_gigabytes_is_refused_before_it_is_read(
    kind: bytes, before: bool, size: int
) -> None:
    plain = tarfile.TarInfo("a.png").tobuf()
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = kind, size
    data = (plain if before else b"") + long.tobuf(tarfile.GNU_FORMAT) + b"a" * 1024
    with pytest.raises(UnreadableError, match=rf"a header of {size:,} bytes for a name"):
        list(tar_headers(io.BytesIO(data), 0, len(data), "x.tar"))


def test_a_long_name_is_read() -> None:
    file = io.BytesIO()
    name = "/".join(["x" * 200] * 20)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            tar.addfile(tarfile.TarInfo(name))
        data = file.getvalue()
        ((_, info),) = tar_headers(io.BytesIO(data), 0, len(data), "x.tar")
        assert info.name == name
        file = io.BytesIO()


def sparse(holes: int, claimed: int | None = None) -> bytes:
    """POSIX's version 1.0: the map stands before the bytes, its length first."""
    body = f"{holes if claimed is None else claimed}\n" + "".join(
        f"{2048 * n}\n0\n" for n in range(holes)
    )
    data = body.encode().ljust(-(-len(body) // 512) * 512, b"\0")
    info = tarfile.TarInfo("a.png")
    info.size = len(data)
    info.pax_headers = {
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "a.png",
        "GNU.sparse.realsize": str(2048 * holes + 9),
    }  # fmt: skip
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(1024)


def old_sparse(blocks: int) -> bytes:
    """Old GNU's: blocks of 21 pairs behind the header, each of which says whether one follows."""
    header = bytearray(tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[482:483] = b"S", b"\1"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    more = [bytearray(512) for _ in range(blocks)]
    for block in more[:-1]:
        block[504] = 1
    return bytes(header) + b"".join(more) + bytes(1024)


@pytest.mark.parametrize("data", [sparse(10), old_sparse(3)])
def test_a_sparse_member_s_map_is_read(data: bytes) -> None:
    found = list(tar_headers(io.BytesIO(data), 0, len(data), "x.tar"))
    assert [info.name for _, info in found] == ["a.png"]


@pytest.mark.parametrize(
    "data", [sparse(3, 10**9), sparse(3, 2**18 + 1), old_sparse(2**18 // 21 + 2)]
)
def test_a_map_of_more_holes_than_any_file_has_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableError, match="sparse file of more than 262,144 holes"):
        list(tar_headers(io.BytesIO(data), 0, len(data), "x.tar"))
