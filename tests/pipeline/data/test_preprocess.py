import io

import numpy as np
import pytest
from PIL import Image

from pipeline.config import PreprocessConfig
from pipeline.data.preprocess import (
    is_mirrored,
    preprocess_digest,
    preprocess_image,
    sample_draw,
)

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Smooth colours and one sharp edge, 90 wide and 60 high."""
    across, down = np.meshgrid(np.linspace(0, 255, 90), np.linspace(0, 255, 60))
    pixels = np.stack([across, down, 255 - across], axis=-1)
    pixels[:, 40:44] = 0
    return Image.fromarray(pixels.astype(np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def difference(found: np.ndarray, expected: Image.Image) -> int:
    pixels = np.asarray(expected).astype(int)
    return int(np.abs(found.transpose(1, 2, 0).astype(int) - pixels).max())


@pytest.mark.parametrize("resize", FILTERS)
@pytest.mark.parametrize(
    ("crop", "box"), [("center", (15, 0, 75, 60)), ("stretch", (0, 0, 90, 60))]
)
def test_pixels_are_pillows_to_two_levels(
    photo: Image.Image, resize: str, crop: str, box: tuple[int, int, int, int]
) -> None:
    config = PreprocessConfig.model_validate({"image_size": 24, "crop": crop, "resize": resize})
    expected = photo.resize((24, 24), FILTERS[resize], box)
    assert difference(preprocess_image(png(photo), config), expected) <= 2


def test_padding_keeps_the_shape_and_fills_with_black(photo: Image.Image) -> None:
    found = preprocess_image(png(photo), PreprocessConfig(image_size=30, crop="pad"))
    assert (found[:, :5] == 0).all()
    assert (found[:, 25:] == 0).all()
    expected = photo.resize((30, 20), Image.Resampling.BILINEAR)
    assert difference(found[:, 5:25], expected) <= 2


def test_a_random_crop_is_the_draws_own_window(photo: Image.Image) -> None:
    config = PreprocessConfig(image_size=60, crop="random")
    draw = 17 << 20
    found = preprocess_image(png(photo), config, draw=draw)
    assert difference(found, photo.crop((17, 0, 77, 60))) == 0


def test_half_of_the_samples_are_mirrored_and_mirroring_is_exact(photo: Image.Image) -> None:
    config = PreprocessConfig(image_size=60)
    draws = [sample_draw(0, 0, f"key-{number}") for number in range(2000)]
    assert 900 < sum(map(is_mirrored, draws)) < 1100
    mirrored = next(draw for draw in draws if is_mirrored(draw))
    plain = preprocess_image(png(photo), config)
    flipped = preprocess_image(png(photo), config, flip=True, draw=mirrored)
    assert np.array_equal(flipped, plain[:, :, ::-1])


def test_one_channel_is_pillows_luminance(photo: Image.Image) -> None:
    found = preprocess_image(png(photo), PreprocessConfig(image_size=60, channels=1))
    expected = np.asarray(photo.convert("L").crop((15, 0, 75, 60))).astype(int)
    assert int(np.abs(found[0].astype(int) - expected).max()) <= 1


def test_every_choice_has_a_digest_of_its_own() -> None:
    choices = [
        {}, {"image_size": 31}, {"channels": 1}, {"crop": "pad"}, {"resize": "bicubic"},
    ]  # fmt: skip
    digests = {preprocess_digest(PreprocessConfig.model_validate(choice)) for choice in choices}
    assert len(digests) == len(choices)
