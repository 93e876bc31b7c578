import io
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset

from pipeline.packing import shard_writer as shard_module
from pipeline.packing.shard_writer import Sample, ShardWriter

SAMPLES = [
    Sample(
        "cats/a", "jpg", b"\xff" * 700, 3, 4, {"label": "cats", "path": "cats/é.jpg"}, 7, "a cat"
    ),
    Sample("x" * 200, "png", b"1", 1, 1, {}),
    Sample("b", "webp", b"2" * 512, 5, 6, {"path": "b.webp"}, 0),
]


def test_a_shard_has_the_bytes_of_webdatasets_own_writer(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as writer:
        for sample in SAMPLES:
            writer.write(sample)
    buffer = io.BytesIO()
    theirs = webdataset.TarWriter(buffer, encoder=False, mtime=0, user="", group="", mode=0o444)
    for sample in SAMPLES:
        theirs.write({"__key__": sample.key, **dict(sample.members())})
    theirs.close()
    assert path.read_bytes() == buffer.getvalue()


def test_the_index_says_where_each_member_lies(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with ShardWriter(path) as writer:
        for sample in SAMPLES:
            writer.write(sample)
    data, index = path.read_bytes(), writer.index
    for n, sample in enumerate(SAMPLES):
        start = index.offsets[n]
        assert data[start : start + index.sizes[n]] == sample.image
        assert index.crc32[n] == zlib.crc32(sample.image)
        assert (index.widths[n], index.heights[n]) == (sample.width, sample.height)
    assert data[index.txt_offsets[0] :][: index.txt_sizes[0]] == b"a cat"
    assert data[index.cls_offsets[0] :][: index.cls_sizes[0]] == b"7"
    assert index.json_sizes[1] == -1
    assert list(index.starts) == [0, *index.ends[:-1]]


@pytest.mark.parametrize(
    ("name", "size"),
    [("a.jpg", 0), ("x" * 96 + ".jpg", 8**11 - 1), ("x" * 97 + ".jpg", 5), ("x/" * 99 + "y.jpg", 9),
     ("é.jpg", 3), ("a.jpg", 8**11)],
)  # fmt: skip
def test_a_header_is_the_one_that_tarfile_makes(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o444
    assert shard_module.header(name, size) == info.tobuf(tarfile.PAX_FORMAT, "utf-8")


def test_a_shard_that_goes_to_the_disk_meanwhile_is_the_same_and_a_disk_s_error_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_module, "_SYNC_BYTES", 1000)
    monkeypatch.setattr(shard_module, "_PIECE_BYTES", 3000)
    samples = [Sample(str(n), "png", bytes([n]) * 700, 1, 1, {"n": n}) for n in range(9)]
    for name, durable in (("plain", False), ("durable", True)):
        with ShardWriter(tmp_path / name, durable=durable) as writer:
            for sample in samples:
                writer.write(sample)
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "durable").read_bytes()

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    def write_all() -> None:
        with ShardWriter(tmp_path / "x", durable=True) as writer:
            for sample in samples:
                writer.write(sample)

    monkeypatch.setattr("os.fdatasync", broken)
    with pytest.raises(OSError, match="Input/output"):
        write_all()
