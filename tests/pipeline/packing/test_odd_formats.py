"""Files that are whole and no images that can be read: told as what they are."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin
from pyarrow import parquet

from pipeline.data.decode import probe_image
from pipeline.errors import SampleError
from pipeline.packing.pack import pack
from tests.pipeline.packing.test_odd_inputs import file as member
from tests.pipeline.packing.test_odd_inputs import packed, tar, zipped
from tests.pipeline.packing.test_odd_tables import said
from tests.pipeline.packing.test_pack import config, png, write
from tests.pipeline.packing.test_tables import STRUCT


def tiff(samples: int = 3, bits: int = 8, kind: int = 1, compression: int = 1) -> bytes:
    """Of 6 x 5 pixels, by TIFF 6.0: tags in order, three values of SHORT do not fit a tag."""
    pixels = bytes(30 * samples * bits // 8)
    end = 8 + 2 + 12 * 10 + 4
    many = b"".join(struct.pack("<H", value) * samples for value in (bits, kind))
    place = {258: end, 339: end + 2 * samples}
    values = {
        256: 6, 257: 5, 258: bits, 259: compression, 262: 2 if samples == 3 else 1,
        273: end + len(many), 277: samples, 278: 5, 279: len(pixels), 339: kind,
    }  # fmt: skip
    tags = b"".join(
        struct.pack("<HHII", tag, 3, samples, place[tag]) if tag in place and samples > 2
        else struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value)
        for tag, value in values.items()
    )  # fmt: skip
    return b"II*\0" + struct.pack("<IH", 8, 10) + tags + bytes(4) + many + pixels


def with_chunk(name: bytes, checksum: int | None = None) -> bytes:
    """A PNG with one more chunk before its pixels."""
    data, body = png(1), b"a\0b"
    crc = zlib.crc32(name + body) if checksum is None else checksum
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)
    at = data.index(b"IDAT") - 4
    return data[:at] + chunk + data[at:]


def much_text() -> bytes:
    """More than Pillow unpacks of a chunk; the picture is whole."""
    about = PngImagePlugin.PngInfo()
    about.add_text("t", "x" * 3_000_000, zip=True)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG", pnginfo=about)
    return buffer.getvalue()


def twelve_bits() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    data[data.index(b"\xff\xc0") + 4] = 12
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason", "words"),
    [
        (tiff(3, 32, 3), "unsupported", r"as TIFF, but its pixels \(3 x 32 bits, floating point"),
        (tiff(1, 64, 3), "unsupported", r"its pixels \(1 x 64 bits, floating point"),
        (tiff(3, 32, 1), "unsupported", r"its pixels \(3 x 32 bits; compression 1\)"),
        (tiff(3, 8, 1, 50002), "unsupported", r"its pixels \(3 x 8 bits; compression 50002\)"),
        (b"MM\0+\0\x08\0\0" + bytes(99), "unsupported", "is a BigTIFF of the byte order MM"),
        (tiff()[:40], "corrupt", r"its header is damaged \(.*; 40 bytes\)"),
        (with_chunk(b"tEXt", 7), "corrupt", "as PNG, but the checksum of its chunk tEXt is wrong"),
        (much_text(), "unsupported", "Decompressed data too large"),
        (b"\xff\xd8\xff", "corrupt", r"as JPEG, but its header is damaged \(.*; 3 bytes\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damaged ones
def test_what_is_no_damage_is_not_called_so(data: bytes, reason: str, words: str) -> None:
    with pytest.raises(SampleError, match=words) as error:
        probe_image(data)
    assert error.value.reason == reason


def test_a_jpeg_of_12_bits_is_unsupported_and_the_same_files_without_oddities_are_read(
    tmp_path: Path,
) -> None:
    folder = write(
        tmp_path / "in",
        {"a.jpg": twelve_bits(), "b.tif": tiff(), "c.tif": tiff(1), "d.png": with_chunk(b"tEXt")},
    )
    result, text = said(config(folder, tmp_path / "out"))
    assert (result.samples, result.reasons) == (3, {"unsupported": 1})
    assert "begins as JPEG, but cannot handle 12-bit layers" in (
        (tmp_path / "out/rejects.jsonl").read_text()
    )
    assert "1 unsupported: convert them to PNG or JPEG" in text


def test_of_several_pages_and_frames_the_first_is_taken_and_told(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), (shade, 0, 0)) for shade in (10, 200)]
    files = {"one.png": png(1)}
    for name, form in (("a.tif", "TIFF"), ("b.gif", "GIF"), ("c.webp", "WEBP"), ("d.png", "PNG")):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF")
    files["single.gif"] = buffer.getvalue()
    for number, options in enumerate(({}, {"verify": "header"}, {"encoding": "webp"})):
        folder = write(tmp_path / "in", files)
        result, text = said(config(folder, tmp_path / f"out{number}", **options))
        assert result.found is not None
        several = {mode: n for mode, n in result.found.modes.items() if "several" in mode}
        assert sum(several.values()) == 4
        assert "Of 4 files with several pages or frames each the first one counts." in text


def reduced(**tags: Any) -> bytes:
    """A TIFF whose first page has these tags, as the thumbnail in a raw file has."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[int(name[1:])] = value
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "TIFF", tiffinfo=info)
    return buffer.getvalue()


def test_a_raw_file_s_thumbnail_is_never_taken_for_the_photograph(tmp_path: Path) -> None:
    plain = reduced()
    folder = write(tmp_path / "in", {
        "a.nef": plain, "0f3a": reduced(t254=1), "1f3a": reduced(t50706=b"\1\4\0\0"), "ok": plain,
    })  # fmt: skip
    (tmp_path / "in/l.csv").write_text("path\na.nef\n0f3a\n1f3a\nok\n")
    for number, source in enumerate((folder, f"{folder}/l.csv")):
        result = pack(config(source, tmp_path / f"out{number}"))
        assert set(packed(result)) == {"ok"}
        assert (result.ignored, result.reasons) == ({".nef": 1}, {"unsupported": 2})
    rows = [{"bytes": plain, "path": "x/a.NEF"}, {"bytes": plain, "path": "x/a.tif"}]
    parquet.write_table(pa.table({"image": pa.array(rows, STRUCT)}), tmp_path / "t.parquet")
    result = pack(config(str(tmp_path / "t.parquet"), tmp_path / "out"))
    assert (result.samples, result.reasons) == (1, {"unsupported": 1})


def test_archives_under_other_names_are_counted_and_programs_and_documents_are_beside(
    tmp_path: Path,
) -> None:
    archive = zipped({"x/a.png": png(1)})
    names = ["book.epub", "comic.cbz", "p.ora", "p.kra", "q.dat", "q.zip.bak", "d.docx", "w.whl"]
    files = dict.fromkeys(names, archive)
    files |= {"t.download": tar(member("a.png", png(2))), "x.exe": b"MZ" + bytes(600) + archive}
    result = pack(config(write(tmp_path / "in", {**files, "ok.png": png(3)}), tmp_path / "out"))
    assert result.ignored == {
        ".epub": 1, ".cbz": 1, ".ora": 1, ".kra": 1, "unnamed archive": 3,
    }  # fmt: skip
    assert result.counts.others == {".docx": 1, ".whl": 1, ".exe": 1}
    lines = "\n".join(result.counts.summary())
    assert "1 .epub: unpack them, or pack them as .zip or .tar" in lines
    assert "`--ignore 'unnamed archive'`" in lines
    taken = pack(config(str(tmp_path / "in/book.epub"), tmp_path / "epub"))
    assert set(packed(taken)) == {"x/a.png"}


def test_datasets_of_other_libraries_are_counted_with_what_to_do(tmp_path: Path) -> None:
    names = ["a.tfrecord", "b.tfrecord-00000-of-00010", "c.mds", "d.mds.zst", "e.beton", "f.rec"]
    folder = write(tmp_path / "in", {**dict.fromkeys(names, b"x" * 99), "ok.png": png(1)})
    result = pack(config(folder, tmp_path / "out"))
    assert result.ignored == {"dataset of another library": 6}
    told = "\n".join(result.counts.summary())
    assert "6 dataset of another library: write them out as files, .tar or .parquet" in told
