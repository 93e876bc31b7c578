"""Images, archives and tars that are made to fill the memory, the disk, or another folder."""

import gzip
import io
import json
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import pytest

from pipeline.data.manifest import read_current
from pipeline.sources import archives
from tests.support.hostile import folder_of_one_image, job, refused


@pytest.mark.parametrize("name", ["../../up.png", "/etc/up.png", "a/../../up.png"])
def test_a_tar_whose_members_lead_out_is_not_adopted(tmp_path: Path, name: str) -> None:
    image = folder_of_one_image(tmp_path)
    with tarfile.open(image / "x.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data := (image / "image.png").read_bytes())
        tar.addfile(info, io.BytesIO(data))
    flags = ("--source", str(image / "x.tar"), "--output", str(image / "out"))
    assert "leads out" in refused("index", *flags)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    """A black 1-bit PNG, whatever its size: 900 million pixels in 110 kB."""
    rows = zlib.compress(bytes((1 + -(-width // 8)) * height), 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_decompression_bombs_are_rejected_each_with_its_reason(tmp_path: Path) -> None:
    text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(200_000_000)))
    hidden = bytearray(png(8, 8))
    hidden[16:24] = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    source = tmp_path / "in"
    source.mkdir()
    images = {
        "large.png": png(30_000, 30_000), "text.png": png(8, 8, text), "lies.png": bytes(hidden),
        "good.png": png(8, 8),
    }  # fmt: skip
    for name, data in images.items():
        (source / name).write_bytes(data)
    code, said = job("pack", "--source", str(source), "--output", str(tmp_path / "out"))
    assert code == 3, said
    rejects = (tmp_path / "out/rejects.jsonl").read_text().splitlines()
    found = {Path(r["path"]).name: r["reason"] for r in map(json.loads, rejects)}
    assert found.keys() == {"large.png", "text.png", "lies.png"}
    assert found["large.png"] == "bomb"
    packed = read_current(str(tmp_path / "out"))
    assert packed is not None
    assert packed.samples == 1


def test_an_archive_that_unpacks_to_more_than_there_is_room_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    with gzip.open(tmp_path / "in/x.tar.gz", "wb", 1) as file:
        file.write(bytes(50_000_000))
    # As if the disk had 10 MB left.
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(archives, "_SPARE_BYTES", free - 10_000_000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    said = refused("pack", "--source", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert "x.tar.gz" in said
