from typing import Any

import pytest
import torch

from pipeline.evaluation.interpolation import decode_walks, path_lengths, walk
from tests.support.digit_models import digits_vae


class Decoder:
    """A decoder of one pixel, given as a function of the latent's first number."""

    image_shape = (1, 1, 1)

    def __init__(self, function: Any) -> None:
        self._function = function

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._function(latents[:, :1])


ENDS = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)


def test_a_straight_decoder_has_paths_as_long_as_the_direct_way_in_even_steps() -> None:
    found = path_lengths(Decoder(lambda z: z), *ENDS)
    assert found.length == pytest.approx(found.direct)
    assert found.jump == pytest.approx(1 / 32, rel=1e-5)
    assert found.jump_ratio == pytest.approx(0.5, rel=1e-5)


def test_a_decoder_that_jumps_keeps_its_jump_however_small_the_steps() -> None:
    found = path_lengths(Decoder(lambda z: (z > 0.4).double()), *ENDS)
    assert found.jump_ratio == pytest.approx(1.0)


def test_a_detour_is_longer_than_the_direct_way() -> None:
    # sin(pi z) goes up to 1 and back: the path is 2 long, the ends are the same image.
    found = path_lengths(Decoder(lambda z: torch.sin(torch.pi * z)), *ENDS)
    assert found.length == pytest.approx(2.0, abs=1e-3)
    assert found.direct == pytest.approx(0.0, abs=1e-6)


def test_a_trained_vae_is_continuous() -> None:
    vae = digits_vae()
    generator = torch.Generator().manual_seed(0)
    starts, goals = torch.randn(2, 8, 8, 1, 1, generator=generator)
    assert path_lengths(vae, starts, goals).jump_ratio == pytest.approx(0.5, abs=0.02)
    assert decode_walks(vae, starts, goals, 5).shape == (8, 5, 1, 8, 8)


def test_a_walk_begins_and_ends_at_its_ends() -> None:
    starts, goals = torch.randn(3, 2), torch.randn(3, 2)
    points = walk(starts, goals, 7)
    assert torch.equal(points[:, 0], starts)
    assert torch.allclose(points[:, -1], goals)
