import csv
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import check_image, decode_image, probe_image
from pipeline.data.image_kinds import jpeg_header
from pipeline.errors import SampleError
from tests.support.warm import ROOT

NASTY = ROOT.parent / "shared/data/nasty"
PHOTOS = ROOT.parent / "shared/data/photos"
REASONS = {"not-an-image", "bomb", "truncated", "corrupt", "unsupported"}
DECODE_ALL = """
import json, sys
from pathlib import Path
from pipeline.data.decode import decode_image, probe_image
from pipeline.errors import SampleError
for path in sys.stdin.read().splitlines():
    data = Path(path).read_bytes()
    try:
        pixels = decode_image(data)
        header = probe_image(data)
        found = [*pixels.shape, header.height, header.width, float(pixels.mean())]
    except SampleError as error:
        found = error.reason
    print(json.dumps(found), flush=True)
"""


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int, width: int, *more: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, *more), dtype=np.uint8)


@pytest.fixture(scope="module")
def nasty() -> list[tuple[dict[str, Any], Any]]:
    """Each row of the manifest, and what a process of its own made of the file."""
    if not NASTY.exists():
        pytest.skip(f"{NASTY} is not there")
    with (NASTY / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = subprocess.run(
        [sys.executable, "-c", DECODE_ALL],
        input="\n".join(str(NASTY / row["file"]) for row in rows),
        capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stderr == "", "nothing may be printed, by C libraries neither"
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    return list(zip(rows, lines, strict=True))


def test_every_file_that_must_decode_has_the_size_and_mean_colour_that_is_stated(
    nasty: list[tuple[dict[str, Any], Any]],
) -> None:
    wrong: list[Any] = []
    decoded = [(row, found) for row, found in nasty if row["expected"] == "decode"]
    for row, found in decoded:
        size = [int(row["out_h"]), int(row["out_w"])]
        if isinstance(found, str) or found[:3] != [*size, 3] or found[3:5] != size:
            wrong.append((row["file"], found))
        elif row["expected_mean_rgb"]:
            off = abs(found[5] - float(row["expected_mean_rgb"]))
            if off > float(row["mean_tol"]):
                wrong.append((row["file"], found[5], row["expected_mean_rgb"]))
    assert wrong == []
    assert len(decoded) == 276


def test_every_file_that_must_be_rejected_is_so_with_a_reason(
    nasty: list[tuple[dict[str, Any], Any]],
) -> None:
    rejected = [(row["file"], found) for row, found in nasty if row["expected"] == "reject"]
    assert [(name, found) for name, found in rejected if found not in REASONS] == []
    assert len(rejected) == 87


def test_of_the_files_on_which_decoders_differ_each_is_decoded_or_rejected_with_a_reason(
    nasty: list[tuple[dict[str, Any], Any]],
) -> None:
    found = [found for row, found in nasty if row["expected"] == "policy"]
    assert all(isinstance(each, list) or each in REASONS for each in found)
    assert len(found) == 50


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_exif_orientation_turns_the_pixels_and_the_header_as_pillow_does(
    kind: str, orientation: int
) -> None:
    from PIL import ImageOps

    smooth = Image.fromarray(noise(4, 6, 3)).resize((48, 32), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(smooth, kind, exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    pixels = decode_image(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= 3, "two JPEG decoders may round differently"
    header = probe_image(data)
    assert (header.height, header.width) == pixels.shape[:2]


def test_an_exif_directory_that_lies_about_its_length_is_no_orientation_and_costs_no_image() -> (
    None
):
    """It counts 60,000 entries in the 12 bytes of one, which is another than the orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIHH", 8, 60_000, 0x0110, 3, 1, 6, 0)
    exif = b"Exif\0\0" + tiff
    plain = saved(Image.fromarray(noise(24, 40, 3)), "JPEG", quality=95)
    lying = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    assert np.array_equal(decode_image(lying), decode_image(plain))
    assert probe_image(lying) == probe_image(plain)
    check_image(lying)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    pixels = decode_image(saved(Image.fromarray(values), "PNG"))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_alpha_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 128, 255]
    pixels = decode_image(saved(Image.fromarray(rgba), "PNG"))
    assert pixels[0, :, 0].tolist() == [255, 127, 0]


def test_palette_grey_and_cmyk_become_rgb() -> None:
    colour = Image.new("RGB", (8, 8), (200, 30, 90))
    for image, kind, tolerance in (
        (colour.quantize(4), "PNG", 2), (colour.quantize(4), "GIF", 2),
        (colour.convert("CMYK"), "JPEG", 8), (colour.convert("CMYK"), "TIFF", 2),
    ):  # fmt: skip
        off = np.abs(decode_image(saved(image, kind)).astype(int) - [200, 30, 90]).max()
        assert off <= tolerance, (image.mode, kind)
    grey = decode_image(saved(Image.new("L", (8, 8), 77), "JPEG"))
    assert set(grey.flatten()) == {77}
    assert grey.shape == (8, 8, 3)


def test_one_channel_is_the_luma_of_itu_r_601() -> None:
    data = saved(Image.new("RGB", (8, 8), (200, 30, 90)), "PNG")
    luma = decode_image(data, channels=1)
    assert luma.shape == (8, 8, 1)
    assert abs(int(luma[0, 0, 0]) - (0.299 * 200 + 0.587 * 30 + 0.114 * 90)) <= 1


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (6, 4), (shade, shade, shade)) for shade in (10, 100, 200)]
    for kind in ("GIF", "WEBP", "PNG"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert set(decode_image(data).flatten()) == {10}, kind


@pytest.mark.parametrize(
    ("size", "shrink_to", "expected"),
    [
        ((800, 1200), 256, (400, 600)),
        ((801, 1203), 200, (201, 301)),
        ((2100, 2100), 256, (263, 263)),
        ((500, 500), 256, (500, 500)),
        ((500, 500), 63, (63, 63)),
    ],
)
def test_a_jpeg_shrinks_by_2_4_or_8_as_long_as_its_short_side_suffices(
    size: tuple[int, int], shrink_to: int, expected: tuple[int, int]
) -> None:
    data = saved(Image.fromarray(np.zeros((*size, 3), np.uint8)), "JPEG")
    assert decode_image(data, shrink_to=shrink_to).shape[:2] == expected


def test_the_pixel_limit_holds_before_anything_is_decoded() -> None:
    data = saved(Image.new("RGB", (300, 200)), "PNG")
    assert decode_image(data, 60_000).shape == (200, 300, 3)
    for read in (decode_image, probe_image):
        with pytest.raises(SampleError, match="300 x 200 pixels is over the limit of 59,999"):
            read(data, 59_999)


def test_a_photograph_cut_at_any_of_forty_places_never_gives_pixels() -> None:
    paths = sorted(PHOTOS.rglob("*.jpg"))[:1]
    if not paths:
        pytest.skip(f"{PHOTOS} is not there")
    data = Path(paths[0]).read_bytes()
    for cut in np.linspace(0, len(data) - 3, 40).astype(int):
        with pytest.raises(SampleError) as raised:
            decode_image(data[:cut])
        assert raised.value.reason in REASONS


SHRINK_ALL = """
import sys
from pathlib import Path
from pipeline.data.decode import decode_image
from pipeline.errors import SampleError
for path in sys.stdin.read().splitlines():
    data = Path(path).read_bytes()
    for size in (1, 40, 90):
        try:
            decode_image(data, shrink_to=size)
        except SampleError:
            continue
print("alive")
"""


def test_no_nasty_file_ends_the_process_when_it_is_shrunk_while_decoding() -> None:
    """A lossless JPEG among them did: it was written in full size into the smaller buffer."""
    if not NASTY.exists():
        pytest.skip(f"{NASTY} is not there")
    paths = "\n".join(str(path) for path in sorted(NASTY.rglob("*.*")))
    found = subprocess.run(
        [sys.executable, "-c", SHRINK_ALL],
        input=paths, capture_output=True, text=True, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert (found.returncode, found.stdout, found.stderr) == (0, "alive\n", "")


def verdict(read: Any, data: bytes) -> tuple[Any, ...]:
    """Height and width, or reason and message of the refusal."""
    try:
        found = read(data)
    except SampleError as error:
        return error.reason, str(error)
    return found.shape[:2] if isinstance(found, np.ndarray) else (found.height, found.width)


def test_the_quick_check_refuses_exactly_what_decoding_refuses() -> None:
    photos = sorted(PHOTOS.rglob("*.jpg"))[:8]
    if not photos or not NASTY.exists():
        pytest.skip(f"{PHOTOS} or {NASTY} is not there")
    dice = np.random.default_rng(5)
    files = [path.read_bytes() for path in sorted(NASTY.rglob("*.*")) if path.suffix != ".csv"]
    for number in range(200):
        data = bytearray(photos[number % len(photos)].read_bytes())
        at = int(dice.integers(2, len(data) - 60))
        if number % 4 == 0:
            data[at] ^= 1 << int(dice.integers(8))
        elif number % 4 == 1:
            del data[at:]
        elif number % 4 == 2:
            del data[at : at + int(dice.integers(1, 50))]
        else:
            data[at : at + 20] = dice.bytes(20)
        files.append(bytes(data))
    verdicts = [(verdict(check_image, data), verdict(decode_image, data)) for data in files]
    assert [pair for pair in verdicts if pair[0] != pair[1]] == []
    refused = sum(isinstance(found[0], str) for found, _ in verdicts)
    assert 150 < refused < len(files) - 200


@pytest.mark.parametrize(("subsampling", "planes"), [(0, 3.0), (2, 1.5)])
def test_a_progressive_jpeg_is_judged_by_the_coefficients_that_are_kept_of_it(
    subsampling: int, planes: float
) -> None:
    """libjpeg keeps all of a progressive image's, 2 bytes each; ITU-T T.81 has the sampling."""
    image = Image.fromarray(noise(64, 48, 3))
    progressive = saved(image, "JPEG", progressive=True, subsampling=subsampling)
    header = jpeg_header(progressive)
    assert header is not None
    assert header.coefficients == 64 * 48 * 2 * planes
    baseline = jpeg_header(saved(image, "JPEG", subsampling=subsampling))
    assert baseline is not None
    assert baseline.coefficients == 0
    assert (decode_image(progressive) == np.asarray(Image.open(io.BytesIO(progressive)))).all()


def test_a_huge_progressive_jpeg_is_a_bomb_where_a_baseline_one_is_an_image() -> None:
    small = Image.fromarray(noise(16, 16, 3))

    def claims(side: int, progressive: bool) -> bytes:
        data = saved(small, "JPEG", progressive=progressive, subsampling=0)
        frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
        return data[:frame] + struct.pack(">HH", side, side) + data[frame + 4 :]

    assert probe_image(claims(9000, progressive=False)).width == 9000
    with pytest.raises(SampleError, match="takes about 695 MiB to decode, over 512"):
        probe_image(claims(9000, progressive=True))
    assert probe_image(claims(7000, progressive=True)).width == 7000
