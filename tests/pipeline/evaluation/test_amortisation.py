import math

import pytest
import torch

from pipeline.evaluation.amortisation import split_gap
from pipeline.evaluation.sums import seen_images
from pipeline.vae import VAE, Noise, draw_noise, importance_estimate
from tests.support.digit_models import TRAINED_ON, digits_vae, images

COUNT = 12


def exact_log_evidence(vae: VAE, pixels: torch.Tensor, seed: int) -> torch.Tensor:
    """log p(x) of a model with two latents, by a grid on [-7, 7]^2: `[B]`, nats."""
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = 2 * math.log(float(axis[1] - axis[0]))
    prior = -0.5 * grid.square().sum(dim=1) - math.log(2 * math.pi)
    target = vae.likelihood.target(pixels, draw_noise(vae, seed, 0, range(len(pixels))).pixels)
    with torch.no_grad():
        parameters = vae.decode_parameters(grid.float().view(-1, 2, 1, 1))
        rows = [
            torch.logsumexp(
                vae.likelihood.log_prob(parameters, one.expand(len(grid), *one.shape)).double()
                + prior,
                dim=0,
            )
            for one in target
        ]
    return torch.stack(rows) + cell


@pytest.fixture(scope="module")
def model() -> tuple[VAE, torch.Tensor, torch.Tensor]:
    vae = digits_vae("bernoulli", latents=2)
    pixels = images()[0][TRAINED_ON : TRAINED_ON + COUNT]
    return vae, pixels, exact_log_evidence(vae, pixels, 0)


def test_the_bound_reaches_the_quadratures_log_evidence(model):
    vae, pixels, exact = model
    estimate = importance_estimate(vae, pixels, 4000, 0)
    assert float((estimate.bound - exact).mean()) == pytest.approx(0, abs=0.03)


def test_the_gap_is_the_exact_kl_between_q_and_the_true_posterior(model):
    vae, pixels, exact = model
    noise = draw_noise(vae, 0, 0, range(COUNT))
    many = Noise(draw_noise(vae, 0, 7, range(COUNT), samples=2000).posterior, noise.pixels)
    with torch.no_grad():
        terms = vae(pixels, many)
        assert torch.equal(terms.kl, vae.encode(seen_images(vae, pixels, noise)).kl())
    exact_kl = float((exact - terms.elbo.double()).mean())
    split = split_gap(vae, pixels, 0, samples=2000, steps=150)
    assert split.gap == pytest.approx(exact_kl, abs=0.1)


def test_the_two_parts_add_up_and_neither_is_negative_beyond_noise(model):
    vae, pixels, _ = model
    split = split_gap(vae, pixels, 0, samples=1000, steps=150)
    assert split.amortisation + split.approximation == pytest.approx(split.gap, abs=1e-9)
    assert split.amortisation >= 0
    assert split.approximation > -3 * split.approximation_error


def test_a_spoilt_encoder_shows_up_as_amortisation_and_not_as_approximation(model):
    vae, pixels, _ = model
    before = split_gap(vae, pixels, 0, samples=1000, steps=150)
    spoilt = digits_vae.__wrapped__("bernoulli", 2)
    encode = spoilt.network.encode
    spoilt.network.encode = lambda values: encode(values) + 0.5  # type: ignore[method-assign]
    after = split_gap(spoilt, pixels, 0, samples=1000, steps=150)
    assert after.amortisation > before.amortisation + 0.3
    assert after.approximation == pytest.approx(before.approximation, abs=0.3)
