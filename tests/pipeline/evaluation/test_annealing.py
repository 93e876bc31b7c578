"""Bounds on log p(x) against closed forms: linear VAEs, whose p(x) is a Gaussian."""

import math

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.annealing import Annealed, Schedule, anneal
from tests.support.ppca import PIXELS, Ppca, with_loadings

SHORT = Schedule(chains=4, temperatures=12, leapfrogs=3)
IMAGES = 6


def linear(number: int, latents: int = 3, posterior: str = "diagonal") -> Ppca:
    """A linear VAE whose diagonal q misses the correlations of p(z|x)."""
    generator = torch.Generator().manual_seed(number)
    loadings = torch.randn(PIXELS, latents, generator=generator, dtype=torch.float64) * 0.1
    return with_loadings(posterior, loadings, (0.03 + 0.05 * (number % 5)) ** 2)


def drawn(model: Ppca, seed: int, count: int = IMAGES) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, what they drew as the likelihood scores it, and as uint8 images."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *model.vae.latent_shape)
    latents = torch.randn(shape, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        parameters = model.vae.decode_parameters(latents)
        return latents, *model.vae.likelihood.draw_target(parameters, generator)


def bounds(model: Ppca, seed: int, schedule: Schedule = SHORT) -> tuple[Annealed, Tensor]:
    latents, target, images = drawn(model, seed)
    with torch.no_grad():
        posterior = model.vae.encode(images)
    found = anneal(model.vae, posterior, target, seed, schedule, drawn_from=latents)
    return found, model.log_prob(target)


def test_over_64_linear_vaes_the_bracket_holds_the_exact_log_evidence() -> None:
    below, above = [], []
    for number in range(64):
        found, exact = bounds(linear(number), number)
        below.append(found.lower - exact)
        assert found.upper is not None
        above.append(found.upper - exact)
    for values, sign in ((torch.cat(below), 1), (torch.cat(above), -1)):
        error = float(values.std()) / math.sqrt(len(values))
        assert sign * float(values.mean()) <= 3 * error
    # A bracket as wide as the world would hold the truth too.
    assert float((torch.cat(above) - torch.cat(below)).mean()) < 0.3


def test_the_exact_posterior_gives_the_log_evidence_itself_by_every_chain() -> None:
    model = linear(1, posterior="full")
    latents, target, _ = drawn(model, 0)
    moments = model.vae.network.encode((target - 0.5) * 512 / 255)
    posterior = model.vae._posterior(moments)
    found = anneal(model.vae, posterior, target, 0, SHORT, drawn_from=latents)
    exact = model.log_prob(target)
    torch.testing.assert_close(found.lower, exact, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.upper, exact, rtol=0, atol=1e-9)
    assert found.effective_samples.tolist() == pytest.approx([4.0] * IMAGES)


def test_more_temperatures_narrow_the_bracket() -> None:
    widths = []
    for temperatures in (2, 32):
        schedule = Schedule(chains=2, temperatures=temperatures, leapfrogs=3)
        found = [bounds(linear(number), number, schedule)[0] for number in range(10, 20)]
        between = [each.upper - each.lower for each in found if each.upper is not None]
        widths.append(float(torch.cat(between).mean()))
    assert widths[1] < 0.7 * widths[0]


def test_an_images_bound_is_the_same_whatever_else_is_in_the_batch() -> None:
    model = linear(2)
    _, target, images = drawn(model, 0)
    with torch.no_grad():
        whole, few = model.vae.encode(images), model.vae.encode(images[:2])
    together = anneal(model.vae, whole, target, 0, SHORT).lower[:2]
    alone = anneal(model.vae, few, target[:2], 0, SHORT).lower
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
