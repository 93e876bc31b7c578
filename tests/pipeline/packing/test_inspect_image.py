import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SampleError
from pipeline.packing.inspect_image import ImagePolicy, inspect_image


def policy(**changes: Any) -> ImagePolicy:
    given = {"verify": "full", "encoding": "keep", "quality": 90, "short_side": None,
             "min_side": 1, "pixel_limit": 10**6}  # fmt: skip
    return ImagePolicy(**{**given, **changes})


def picture(width: int, height: int) -> Image.Image:
    """Smooth enough to be compressed, different in every place."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif"), ("WEBP", "webp")]
)
def test_kept_bytes_are_the_same_and_get_the_extension_of_what_they_are(
    kind: str, extension: str
) -> None:
    data = saved(picture(40, 30), kind)
    found = inspect_image(data, policy())
    assert (found.data, found.extension) == (data, extension)
    assert (found.width, found.height) == (40, 30)


@pytest.mark.parametrize(("encoding", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_encoding_anew_gives_the_format_the_short_side_and_nearly_the_same_picture(
    encoding: str, kind: str
) -> None:
    original = picture(200, 120)
    found = inspect_image(saved(original), policy(encoding=encoding, short_side=60))
    assert (found.width, found.height) == (100, 60)
    with Image.open(io.BytesIO(found.data)) as image:
        assert (image.format, image.size) == (kind, (100, 60))
        got = np.asarray(image.convert("RGB")).astype(int)
    wanted = np.asarray(original.resize((100, 60), Image.Resampling.LANCZOS)).astype(int)
    assert np.abs(got - wanted).mean() < 4


@pytest.mark.parametrize("encoding", ["jpeg", "webp"])
def test_a_lower_quality_gives_fewer_bytes(encoding: str) -> None:
    data = saved(picture(200, 120))
    sizes = [len(inspect_image(data, policy(encoding=encoding, quality=q)).data) for q in (20, 95)]
    assert sizes[0] < 0.6 * sizes[1]


def test_an_image_smaller_than_the_short_side_is_not_enlarged() -> None:
    found = inspect_image(saved(picture(50, 40)), policy(encoding="jpeg", short_side=60))
    assert (found.width, found.height) == (50, 40)


def test_the_orientation_is_in_the_pixels_after_encoding_anew() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = inspect_image(saved(picture(50, 40), "JPEG", exif=exif), policy(encoding="jpeg"))
    with Image.open(io.BytesIO(found.data)) as image:
        assert image.size == (40, 50)
        assert image.getexif().get(0x0112, 1) == 1
    assert (found.width, found.height) == (40, 50)


@pytest.mark.parametrize("verify", ["full", "header"])
def test_the_minimum_side_and_the_pixel_limit_reject_with_their_reasons(verify: str) -> None:
    data = saved(picture(50, 40))
    inspect_image(data, policy(verify=verify, min_side=40, pixel_limit=2000))
    for change, reason in (({"min_side": 41}, "small"), ({"pixel_limit": 1999}, "bomb")):
        with pytest.raises(SampleError) as raised:
            inspect_image(data, policy(verify=verify, **change))
        assert raised.value.reason == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_cut_image_passes_by_its_header_and_not_in_full(kind: str) -> None:
    data = saved(picture(300, 200), kind)
    cut = data[: len(data) * 3 // 4]
    with pytest.raises(SampleError):
        inspect_image(cut, policy())
    assert inspect_image(cut, policy(verify="header")).width == 300
