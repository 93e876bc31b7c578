import math
import re

import pytest
import torch

from pipeline.evaluation.evidence import (
    PosteriorGap,
    WeightRows,
    affordable,
    bound_gap,
    bracket_evidence,
    images_within,
)
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


def test_the_bound_reaches_the_quadratures_log_evidence(
    model: tuple[VAE, torch.Tensor, torch.Tensor],
) -> None:
    vae, pixels, exact = model
    estimate = importance_estimate(vae, pixels, 4000, 0)
    assert float((estimate.bound - exact).mean()) == pytest.approx(0, abs=0.03)


def gap_of(vae: VAE, pixels: torch.Tensor) -> PosteriorGap:
    estimate = importance_estimate(vae, pixels, 64, 0)
    gaps = (estimate.bound - estimate.mean_log_weight).numpy()
    elbos = estimate.mean_log_weight.numpy()
    weights = WeightRows(elbos, gaps, estimate.effective_samples.numpy(), 64)
    return bound_gap(vae, pixels, range(len(pixels)), weights, 0)


def test_the_gap_is_the_exact_kl_between_q_and_the_true_posterior(
    model: tuple[VAE, torch.Tensor, torch.Tensor],
) -> None:
    vae, pixels, exact = model
    noise = draw_noise(vae, 0, 0, range(COUNT))
    many = Noise(draw_noise(vae, 0, 7, range(COUNT), samples=2000).posterior, noise.pixels)
    with torch.no_grad():
        terms = vae(pixels, many)
        assert torch.equal(terms.kl, vae.prior.kl(vae.encode(seen_images(vae, pixels, noise))))
    exact_kl = float((exact - terms.elbo.double()).mean())
    assert gap_of(vae, pixels).nats == pytest.approx(exact_kl, abs=0.1)


def test_the_parts_add_up_and_the_best_bound_is_told(
    model: tuple[VAE, torch.Tensor, torch.Tensor],
) -> None:
    vae, pixels, _ = model
    gap = gap_of(vae, pixels)
    assert gap.nats == gap.bounds[gap.method] > max(gap.bounds.values()) - 2 * gap.error
    assert gap.amortisation is not None
    assert gap.amortisation_error is not None
    assert gap.remaining is not None
    assert gap.amortisation + gap.remaining == pytest.approx(gap.nats, abs=1e-9)
    assert gap.amortisation > -3 * gap.amortisation_error
    assert gap.remaining > -3 * gap.error


def test_a_spoilt_encoder_shows_up_as_amortisation_and_not_as_approximation(
    model: tuple[VAE, torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, pixels, _ = model
    before = gap_of(vae, pixels)
    spoilt = digits_vae.__wrapped__("bernoulli", 2)
    encode = spoilt.network.encode
    monkeypatch.setattr(spoilt.network, "encode", lambda values: encode(values) + 0.5)
    after = gap_of(spoilt, pixels)
    assert after.amortisation is not None
    assert before.amortisation is not None
    assert after.amortisation > before.amortisation + 0.3
    assert after.remaining == pytest.approx(before.remaining, abs=0.3)


def too_narrow(monkeypatch: pytest.MonkeyPatch, latents: int, by: float) -> VAE:
    """A trained model whose encoder gives each log-variance `by` less than it was trained to."""
    vae = digits_vae.__wrapped__("gaussian", latents)
    encode = vae.network.encode
    narrower = torch.tensor([0.0, by]).repeat_interleave(latents).view(1, 2 * latents, 1, 1)
    monkeypatch.setattr(vae.network, "encode", lambda values: encode(values) - narrower)
    return vae


def test_the_better_bound_is_taken_where_importance_weights_see_a_part_of_the_gap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Far too narrow: the few effective draws never reach the rest of the posterior.
    vae = too_narrow(monkeypatch, 8, 4.0)
    gap = gap_of(vae, images()[0][TRAINED_ON : TRAINED_ON + COUNT])
    assert gap.bounds["importance"] < 0.8 * gap.nats
    assert gap.method != "importance"


def test_the_draws_that_count_are_those_of_the_q_that_gave_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae, count = too_narrow(monkeypatch, 2, 2.0), {}
    for method in ("importance", "optimised"):
        monkeypatch.setattr("pipeline.evaluation.evidence._best", lambda gaps, m=method: m)
        count[method] = gap_of(vae, images()[0][TRAINED_ON : TRAINED_ON + COUNT]).effective_samples
    # A q that fits has nearly equal weights: most of its 64 draws count.
    assert 1 <= count["importance"] < 16
    assert 32 < count["optimised"] <= 64


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli", "logistic"])
def test_the_bracket_of_100_digits_drawn_from_a_trained_model_is_half_a_nat_wide_at_most(
    likelihood: str,
) -> None:
    bracket = bracket_evidence(digits_vae(likelihood), 100, 0)
    assert abs(bracket.width) <= 0.5
    assert bracket.width > -3 * bracket.width_error


def test_images_that_take_longer_than_a_minute_get_fewer_bounds() -> None:
    assert images_within(32, 1.5) == 32
    assert images_within(32, 2.0) == images_within(32, 3.7) == 16
    assert images_within(32, 1000.0) == 4
    assert images_within(3, 1000.0) == 3
    assert affordable(digits_vae(), 0) == 0
    assert affordable(digits_vae(), 4) == 4


def test_whoever_waits_for_the_bounds_sees_each_of_their_gradients_counted(
    model: tuple[VAE, torch.Tensor, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    vae, pixels, _ = model
    gap_of(vae, pixels[:5])
    bracket_evidence(vae, 5, 0, without="a way without")
    shown = capsys.readouterr().err
    for what, hint in (("images", ""), ("drawn images", "a way without")):
        told = re.search(rf"bounds of 5 {what}: (\d+)/(\d+) steps \[(.*)\]", shown)
        assert told is not None, shown
        assert told[1] == told[2], "the work that was foreseen is the work that was done"
        assert told[3].endswith(hint)
