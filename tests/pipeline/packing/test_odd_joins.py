"""Archives joined by `cat`, packed in odd ways, and what people's tables write for a label."""

import bz2
import io
import json
import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline.data import Dataset
from pipeline.errors import DatasetError
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import file, packed, tar, zipped
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.packing.test_tables import read

ONE, TWO = tar(file("a.png", png(1))), tar(file("b.png", png(2)))


def pack_file(folder: Path, name: str, data: bytes, **options: Any) -> Any:
    """Packs one file, in a folder of its own, below the folder."""
    write(folder / "in", {name: data})
    return pack(config(str(folder / "in" / name), folder / "out", **options))


@pytest.mark.parametrize(("suffix", "compress"), [("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_damaged_second_stream_is_told_and_padding_is_none(
    tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(ONE) + bytes(8) + compress(TWO) + bytes(512)
    assert set(packed(pack_file(tmp_path / "good", f"t.tar.{suffix}", whole))) == {"a.png", "b.png"}
    second = bytearray(compress(TWO))
    second[2] ^= 0xFF
    damaged = compress(ONE) + bytes(second)
    for name, data in {
        "stream": damaged,
        "junk": compress(ONE) + b"downloaded by x",
        "cut": (compress(ONE) + compress(TWO))[:-9],
    }.items():
        with pytest.raises(DatasetError, match="can't be unpacked"):
            pack_file(tmp_path / name, f"t.tar.{suffix}", data)


def test_an_xz_that_asks_for_gigabytes_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**29}]
    data = bytearray(lzma.compress(ONE, filters=filters))
    assert set(packed(pack_file(tmp_path / "half", "t.tar.xz", lzma.compress(ONE)))) == {"a.png"}
    with pytest.raises(DatasetError, match="Memory usage limit"):
        pack_file(tmp_path / "bomb", "t.tar.xz", bytes(data))


def test_zips_that_cat_joined_are_told_with_what_cuts_them_apart(tmp_path: Path) -> None:
    one, two = zipped({"a.png": png(1)}), zipped({"b.png": png(2)})
    with pytest.raises(DatasetError, match=f"head -c {len(one)} THIS > ONE.zip"):
        pack_file(tmp_path / "both", "t.zip", one + two)
    for name, stub in (("plain", b""), ("sfx", b"MZ a program that unpacks itself" * 20)):
        assert set(packed(pack_file(tmp_path / name, "t.zip", stub + two))) == {"b.png"}


def test_a_method_that_cannot_be_undone_is_told_as_that(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.png": png(1), "b.png": png(2)}))
    for place in (8, data.index(b"PK\1\2") + 10):  # Deflate64, in both of a's headers
        struct.pack_into("<H", data, place, 9)
    result = pack_file(tmp_path, "t.zip", bytes(data), bad_fraction=1.0)
    assert set(packed(result)) == {"b.png"}
    said = "\n".join(result.counts.summary())
    assert "1 packed-otherwise: unpack their archives, and give the folders" in said


def test_a_big_tiff_is_an_image_whatever_it_is_called(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "TIFF", big_tiff=True)
    assert buffer.getvalue()[2] == 43
    names = ("slide.scn", "x.btf", "none")
    folder = write(tmp_path / "in", {name: buffer.getvalue() for name in names})
    result = pack(config(folder, tmp_path / "out"))
    assert (result.samples, result.counts.seen) == (3, 3)


def test_texts_that_are_bytes_are_texts(tmp_path: Path) -> None:
    images = [png(n) for n in range(4)]
    labels, captions = [b"cat", "h\u00e9".encode(), None, b"\xff"], [b"one", None, b"", b"four"]
    table = pa.table({"image": images, "label": labels, "caption": captions})
    (tmp_path / "in").mkdir()
    parquet.write_table(table, tmp_path / "in/t.parquet")
    result = pack(config(str(tmp_path / "in/t.parquet"), tmp_path / "out"))
    found = read(Dataset.open(result.dataset), "label", "caption")
    assert [found[key][0] for key in sorted(found)] == ["cat", "h\u00e9", None, "\\xff"]
    assert [found[key][1] for key in sorted(found)] == ["one", None, None, "four"]
    folder = write(tmp_path / "beside", {"x/a.png": png(1)})
    beside = pa.table({"path": ["x/a.png"], "label": [b"dog"]})
    parquet.write_table(beside, tmp_path / "l.parquet")
    said = {"annotations": str(tmp_path / "l.parquet")}
    told = pack(config(folder, tmp_path / "o2", **said))
    assert [label for (label,) in read(Dataset.open(told.dataset), "label").values()] == ["dog"]


def test_images_with_a_row_are_counted_among_those_that_are_packed(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", {"a.png": png(1), ".h.png": png(2), "x.svg": b"<svg/>"})
    rows = [{"path": name, "label": "x"} for name in ("a.png", ".h.png", "x.svg", "no.png")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = {"annotations": str(tmp_path / "t.jsonl"), "unmatched": 0.0}
    with pytest.raises(DatasetError, match=r"(\d) of \1 images have a row; \d of its 4 rows"):
        pack(config(folder, tmp_path / "out", **said))


def zip_of_macos(path: Path, members: dict[str, bytes], hole: int) -> None:
    """As its Archive Utility writes one of over 4 GiB: offsets lose what 32 bits can't hold."""
    directory, items = b"", list(members.items())
    with path.open("wb") as file:
        for number, (name, data) in enumerate(items):
            if number == len(items) // 2:
                file.seek(file.tell() + hole)
            about = struct.pack(
                "<HHHHHIIIHH", 20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name), 0
            )
            at = struct.pack("<HHHII", 0, 0, 0, 0, file.tell() % 2**32)
            directory += b"PK\1\2" + struct.pack("<H", 20) + about + at + name.encode()
            file.write(b"PK\3\4" + about + name.encode() + data)
        end, count = file.tell() % 2**32, len(items)
        file.write(directory)
        file.write(b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), end, 0))


@pytest.mark.parametrize("hole", [0, 2**32 - 1000, 2**32 + 5000])
def test_a_zip_of_macos_of_over_4_gib_goes_in_whole(tmp_path: Path, hole: int) -> None:
    members = {f"k/{n}.png": png(n) for n in range(6)}
    zip_of_macos(tmp_path / "t.zip", members, hole)
    result = pack(config(str(tmp_path / "t.zip"), tmp_path / "out"))
    assert {path: image for path, (image, _) in packed(result).items()} == members
    assert not result.reasons
