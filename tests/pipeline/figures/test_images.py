import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.figures import (
    draw_interpolations,
    draw_progress,
    draw_reconstructions,
    draw_samples,
    draw_sheet,
    draw_traversals,
    to_png,
)

RNG = np.random.default_rng(0)


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.format == "PNG"
    return image.convert("RGB")


def colours(image: Image.Image) -> set[tuple[int, int, int]]:
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (3, 128)])
def test_reconstructions_of_any_size_and_channels_are_drawn(channels: int, size: int) -> None:
    images = RNG.integers(0, 256, (12, channels, size, size), dtype=np.uint8)
    image = picture(to_png(draw_reconstructions, images, {"at the mean": images / 255}))
    assert image.width > 1000


def test_every_sample_appears_with_its_own_colour() -> None:
    levels = np.linspace(0.1, 0.9, 24).reshape(12, 2)
    flat = np.zeros((12, 3, 8, 8))
    flat[:, 0], flat[:, 1] = levels[:, 0, None, None], levels[:, 1, None, None]
    found = colours(picture(to_png(draw_samples, flat)))
    for red, green in levels:
        assert any(
            abs(c[0] - red * 255) < 2 and abs(c[1] - green * 255) < 2 and c[2] < 2 for c in found
        )


def test_a_black_image_stays_black_and_is_not_stretched_in_contrast() -> None:
    grey = np.full((4, 1, 8, 8), 0.25)
    found = colours(picture(to_png(draw_samples, grey)))
    assert (64, 64, 64) in found or (63, 63, 63) in found


def test_walks_traversals_and_progress_are_drawn() -> None:
    walks = RNG.random((3, 5, 1, 8, 8))
    framed = picture(to_png(draw_interpolations, walks, ends=(walks[:, 0], walks[:, 4])))
    bare = picture(to_png(draw_interpolations, walks))
    assert framed.height < bare.height  # two more columns make the cells smaller
    picture(to_png(draw_traversals, walks, [-2, -1, 0, 1, 2], ["z0", "z1", "z2"]))
    picture(to_png(draw_progress, walks[0], walks, [0, 10, 20]))


def test_equal_input_gives_equal_bytes_and_a_pdf_is_a_pdf(tmp_path: Path) -> None:
    images = RNG.random((4, 1, 8, 8))
    assert to_png(draw_samples, images) == to_png(draw_samples, images)
    draw_samples(images, tmp_path / "samples.pdf")
    assert (tmp_path / "samples.pdf").read_bytes().startswith(b"%PDF")


def test_a_sheet_of_several_shapes_shows_each_whole() -> None:
    shapes = [(8, 24), (24, 8), (16, 16)]
    images = [np.full((*shape, 3), 40 * n, dtype=np.uint8) for n, shape in enumerate(shapes)]
    sheet = np.asarray(
        picture(to_png(draw_sheet, images, ["a", "b", "c"], headline="three")).convert("L")
    ).astype(int)
    areas = [int((sheet == 40 * n).sum()) for n in (1, 2)]
    assert areas[0] == pytest.approx(areas[1] * 24 * 8 / 16**2, rel=0.15)
