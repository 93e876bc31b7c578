import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.encoding.report import Reconstructions
from pipeline.figures.store import draw_channels, draw_decoded
from pipeline.latents.statistics import measure


def drawn(draw: Any, *arguments: Any) -> np.ndarray:
    target = io.BytesIO()
    draw(*arguments, target)
    return np.array(Image.open(target).convert("RGB"))


def test_channels_of_any_number_are_drawn_and_the_same_again() -> None:
    for channels in (1, 4, 50):
        latents = np.random.default_rng(0).normal(size=(9, channels, 2, 2))
        statistics = measure(latents, np.zeros_like(latents))
        first = drawn(draw_channels, statistics)
        assert first.std() > 5
        np.testing.assert_array_equal(first, drawn(draw_channels, statistics))


def test_originals_and_decoded_images_are_drawn() -> None:
    originals = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    found = Reconstructions(tuple("abcde"), originals, torch.rand(5, 3, 8, 8))
    assert drawn(draw_decoded, found).shape[1] > 500
