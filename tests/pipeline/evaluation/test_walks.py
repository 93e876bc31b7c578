from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from pipeline.errors import ConfigError
from pipeline.evaluation.walks import (
    decode_walks,
    label_direction,
    path_lengths,
    principal_axes,
    walk,
)
from tests.support.digit_models import digits_vae


class Decoder:
    """A decoder of one pixel, given as a function of the latent's first number."""

    image_shape = (1, 1, 1)

    def __init__(self, function: Any) -> None:
        self._function = function

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._function(latents[:, :1])


def of(function: Any) -> Any:
    """As much of a VAE as a walk needs."""
    return Decoder(function)


ENDS = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)


def test_a_straight_decoder_has_paths_as_long_as_the_direct_way_in_even_steps() -> None:
    found = path_lengths(of(lambda z: z), *ENDS)
    assert found.length == pytest.approx(found.direct)
    assert found.jump == pytest.approx(1 / 32, rel=1e-5)
    assert found.jump_ratio == pytest.approx(0.5, rel=1e-5)


def test_a_decoder_that_jumps_keeps_its_jump_however_small_the_steps() -> None:
    found = path_lengths(of(lambda z: (z > 0.4).double()), *ENDS)
    assert found.jump_ratio == pytest.approx(1.0)


def test_a_detour_is_longer_than_the_direct_way() -> None:
    # sin(pi z) goes up to 1 and back: the path is 2 long, the ends are the same image.
    found = path_lengths(of(lambda z: torch.sin(torch.pi * z)), *ENDS)
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


def test_moving_along_a_label_direction_carries_one_labels_mean_onto_the_others() -> None:
    means = torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 7.0], [7.0, 7.0]])
    found = label_direction(means, ["a", "a", "b", "b"], "a", "b")
    assert found.tolist() == [5.0, 7.0]


def test_an_unknown_label_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'c' is not in the dataset, which has a, b"):
        label_direction(torch.zeros(2, 3), ["a", "b"], "a", "c")


def test_principal_axes_are_scikit_learns_up_to_sign() -> None:
    points = np.random.default_rng(0).normal(size=(200, 6)) * [5, 3, 2, 1, 0.5, 0.1]
    theirs = PCA(3).fit(points)
    ours = principal_axes(torch.from_numpy(points), 3)
    assert np.abs((ours.axes.numpy() * theirs.components_).sum(axis=1)) == pytest.approx(1.0)
    assert ours.share.numpy() == pytest.approx(theirs.explained_variance_ratio_)
    assert ours.deviations.numpy() ** 2 * 200 / 199 == pytest.approx(theirs.explained_variance_)
