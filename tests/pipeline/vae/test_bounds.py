import math

import pytest
import torch
from torch import Tensor

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import build_vae, importance_estimate
from pipeline.vae.bounds import _WeightTotals
from tests.support.ppca import optimum


def images(count: int = 6) -> Tensor:
    return torch.randint(
        0, 256, (count, 1, 3, 3), dtype=torch.uint8, generator=torch.manual_seed(0)
    )


@pytest.mark.parametrize("samples", [1, 3, 50])
def test_bound_is_the_log_likelihood_for_every_k_under_the_exact_posterior(samples: int) -> None:
    model = optimum("diagonal")
    vae, shown = model.vae, images()
    estimate = importance_estimate(vae, shown, samples, seed=0)
    # q is exact for the position at the level's centre, what the encoder sees; score that one.
    centres = (shown.double() + 0.5) / 256
    from pipeline.vae.noise import Noise, draw_noise

    noise = draw_noise(vae, 0, 1, range(6), samples=samples)
    centred = Noise(noise.posterior, torch.full_like(noise.pixels, 0.5))
    with torch.no_grad():
        weights = vae(shown, centred).log_weights
    torch.testing.assert_close(
        weights, model.log_prob(centres)[:, None].expand(-1, samples), rtol=0, atol=1e-9
    )
    assert estimate.bound.shape == (6,)


def test_bound_rises_with_k_and_stays_below_the_log_likelihood_in_the_mean() -> None:
    torch.manual_seed(0)
    vae = build_vae(
        ModelConfig(kind="mlp", latent_channels=3, width=16, likelihood="bernoulli"),
        PreprocessConfig(image_size=3, channels=1),
    )
    for parameter in vae.parameters():
        parameter.data.mul_(2)
    white = (images(40) > 127).to(torch.uint8) * 255
    bounds = [
        float(importance_estimate(vae, white, k, seed=1).bound.mean()) for k in (1, 8, 64, 4000)
    ]
    assert bounds == sorted(bounds)
    estimate = importance_estimate(vae, white, 64, seed=1)
    assert bool((estimate.effective_samples >= 1).all())
    assert bool((estimate.effective_samples <= 64).all())
    assert bool((estimate.mean_log_weight <= estimate.bound).all())


def test_neither_chunk_nor_batch_changes_what_is_drawn() -> None:
    vae = optimum("diagonal").vae
    shown = images()
    whole = importance_estimate(vae, shown, 40, seed=5)
    small = importance_estimate(vae, shown[3:], 40, seed=5, slots=range(3, 6), chunk=7)
    torch.testing.assert_close(small.bound, whole.bound[3:])
    torch.testing.assert_close(small.effective_samples, whole.effective_samples[3:])


def test_streamed_sums_equal_the_plain_logsumexp() -> None:
    weights = torch.randn(4, 30, generator=torch.manual_seed(0), dtype=torch.float64) * 200 - 5000
    totals = _WeightTotals.empty(4, torch.device("cpu"))
    for part in weights.split(7, dim=1):
        totals = totals.with_log_weights(part)
    estimate = totals.estimate(30)
    torch.testing.assert_close(estimate.bound, weights.logsumexp(1) - math.log(30))
    torch.testing.assert_close(estimate.mean_log_weight, weights.mean(1))
    effective = 1 / weights.softmax(1).square().sum(1)
    torch.testing.assert_close(estimate.effective_samples, effective)
