import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from pipeline.evaluation.findings import FindingOptions, find
from pipeline.evaluation.numbers import Codes
from pipeline.evaluation.rows import MeasureOptions, measure
from pipeline.explanation.health import health, warnings_of
from pipeline.explanation.sentences import Check
from pipeline.vae import VAE
from tests.support.claims import World
from tests.support.digit_findings import numbers_of
from tests.support.digit_models import TRAINED_ON, digits_vae, held_out, images, sigma_of
from tests.support.health_claims import HEALTH_CLAIMS


def test_a_good_model_gets_no_warning() -> None:
    assert warnings_of(health(numbers_of(), 0.2)) == []


def test_of_one_image_nothing_is_said_of_what_varies() -> None:
    assert warnings_of(health(replace(numbers_of(), images=1, active_units=0), 0.2)) == []


def test_a_really_collapsed_model_is_told_so() -> None:
    assert "Posterior collapse" in warnings_of(health(numbers_of(beta=500.0), 0.2))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"active_units": 1, "latent_dimensions": 64}, "Over-regularised: only 1 of 64"),
        ({"elbo": 12.0}, "The ELBO is positive"),
        ({"not_finite": 3}, "3 of 299 images have an ELBO that is not finite and"),
        ({"effective_samples": 1.1}, "only 1.10 count"),
        ({"codes": Codes(10, psnr_own=10.05, psnr_other=10.0)}, "decoder ignores z"),
    ],
)
def test_each_illness_is_named(change: dict[str, Any], words: str) -> None:
    warnings = warnings_of(health(replace(numbers_of(), **change), 0.2))
    assert len(warnings) == 1
    assert words in warnings[0]


def test_a_deviation_at_its_floor_is_a_clamped_variance() -> None:
    assert "variance is clamped" in warnings_of(health(numbers_of(), 1 / 256))[0]


def wide(vae: VAE) -> None:
    """A q so wide that hardly one of its draws counts."""
    encode = vae.network.encode
    more = torch.tensor([0.0, 6.0]).repeat_interleave(8).view(1, 16, 1, 1)
    vae.network.encode = lambda values: encode(values) + more  # type: ignore[assignment, method-assign]


def deaf(vae: VAE) -> None:
    """A decoder that gives every code the same image."""
    decode = vae.network.decode
    vae.network.decode = lambda latents: decode(0 * latents)  # type: ignore[method-assign]


def sharp(vae: VAE) -> None:
    """A deviation at its bound."""
    with torch.no_grad():
        vae.get_parameter("likelihood.scale").fill_(-10)


SPOILT = {
    Check.FEW_EFFECTIVE_DRAWS: wide,
    Check.DECODER_IGNORES_Z: deaf,
    Check.DEVIATION_AT_ITS_FLOOR: sharp,
}


@pytest.mark.parametrize("check", SPOILT)
def test_a_spoilt_models_sign_shows_and_holds_by_other_means(check: Check) -> None:
    vae = copy.deepcopy(digits_vae())
    SPOILT[check](vae)
    # Position 3 of these batches is a bad sample: the images that count are the others.
    measured = measure(vae, held_out(41, 41), MeasureOptions(64, 0, 41, 1000))
    places = torch.tensor([TRAINED_ON + place for place in range(41) if place != 3])
    first = images()[0][places]
    numbers = find(vae, measured, first, FindingOptions(0, 64, 2)).numbers
    world = World(vae, first, [], numbers, first, {})
    found = health(numbers, sigma_of(vae).item()).sentences
    (sign,) = [each for each in found if each.check is check]
    HEALTH_CLAIMS[check](world, sign.figures, sign.text)
