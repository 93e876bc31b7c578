"""A JPEG of few bytes may come in thousands of scans, each of which costs a look at all of it."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import check_image, decode_image, probe_image
from pipeline.data.image_kinds import MOST_SCANS, has_too_many_scans, jpeg_header
from pipeline.errors import SampleError


def saved(kind: str, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def scans(data: bytes) -> int:
    return data.count(b"\xff\xda")


def repeated(data: bytes, times: int) -> bytes:
    """The last scan, with the tables before it, so many times more."""
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * times + b"\xff\xd9"


PROGRESSIVE = saved("JPEG", progressive=True, quality=80)
BASELINE = saved("JPEG", quality=80)


def in_three_scans(data: bytes) -> bytes:
    """As if the first scan had one component: what libjpeg reads as several."""
    at = data.find(b"\xff\xda")
    return data[:at] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[at + 14 :]


@pytest.mark.parametrize("read", [probe_image, check_image, decode_image])
@pytest.mark.parametrize(
    "data",
    [
        repeated(PROGRESSIVE, MOST_SCANS),
        repeated(PROGRESSIVE, 3000),
        repeated(in_three_scans(BASELINE), 3000),
        # What only Pillow opens: bytes between the markers.
        repeated(PROGRESSIVE[:2] + b"\xff\x00" + PROGRESSIVE[2:], 3000),
    ],
    ids=["one too many", "thousands", "thousands, sequential", "behind odd bytes"],
)
def test_thousands_of_scans_are_a_bomb(read: object, data: bytes) -> None:
    assert callable(read)
    with pytest.raises(SampleError, match="a JPEG of more than 100 scans") as raised:
        read(data)
    assert raised.value.reason == "bomb"


def test_a_strip_of_a_tiff_is_counted_by_itself() -> None:
    data = saved("TIFF", compression="jpeg")
    assert decode_image(data).shape == (48, 64, 3)
    with pytest.raises(SampleError, match="more than 100 scans"):
        decode_image(data + b"\xff\xd8" + b"\xff\xda\x00\x02" * 101)


@pytest.mark.parametrize(
    "data",
    [
        PROGRESSIVE, BASELINE, repeated(PROGRESSIVE, MOST_SCANS - scans(PROGRESSIVE)),
        # Behind the end mark, as phones append films, and in what is no part of the image.
        PROGRESSIVE + b"\xff\xda" * 500, BASELINE + b"\xff\xda" * 500,
        PROGRESSIVE[:2] + b"\xff\xfe\x03\xea" + b"\xff\xda" * 500 + PROGRESSIVE[2:],
        saved("TIFF", compression="raw") + b"\xff\xda" * 500,
    ],
)  # fmt: skip
def test_what_encoders_write_is_decoded(data: bytes) -> None:
    assert decode_image(data).shape == (48, 64, 3)


def test_only_what_comes_in_scans_is_searched() -> None:
    """Its coefficients are what says so; a photograph of one scan has none to be kept."""
    baseline, progressive = jpeg_header(BASELINE), jpeg_header(PROGRESSIVE)
    assert baseline is not None
    assert progressive is not None
    assert baseline.coefficients == 0 < progressive.coefficients
    several = jpeg_header(in_three_scans(BASELINE))
    assert several is not None
    assert several.coefficients > 0
    assert not has_too_many_scans(PROGRESSIVE)
