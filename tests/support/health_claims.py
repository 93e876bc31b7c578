"""For each sign of illness that `jobs.explain` tells, its claim computed by other means."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.distributions import Normal

from pipeline.explanation.sentences import Check
from pipeline.vae import draw_noise
from tests.support.claims import Figures, World, active, log_likelihood, near, targets
from tests.support.digit_models import sigma_of


def collapsed(w: World, f: Figures, text: str) -> None:
    near(f["kl"], w.terms["kl"], 1e-3)
    active(w, f, text)
    assert f["kl"] < 0.1 or f["active_units"] == 0


def few_active(w: World, f: Figures, text: str) -> None:
    active(w, f, text)
    assert f["active_units"] < f["latent_dimensions"] / 10


def decoder_ignores_z(w: World, f: Figures, text: str) -> None:
    """The code of the image before, in place of its own."""
    with torch.no_grad():
        rebuilt = w.vae.decode(w.q.mean.float().view(-1, *w.vae.latent_shape)).numpy()
    real = w.images.numpy() / 255
    for name, shown in (("own", rebuilt), ("other", np.roll(rebuilt, 1, axis=0))):
        squares = ((shown - real) ** 2).reshape(len(real), -1).mean(1)
        near(f[name], float(-10 * np.log10(squares).mean()), 1e-2)
    assert f["own"] < f["other"] + 0.1


def not_finite(w: World, f: Figures, text: str) -> None:
    noise = draw_noise(w.vae, 0, 0, range(len(w.images)))
    z = w.q.mean + w.q.stddev * noise.posterior.flatten(1).double()
    likelihood = log_likelihood(w.vae, z, targets(w.vae, w.images))
    assert f["not_finite"] == int((~likelihood.isfinite()).sum()) > 0


def positive_elbo(w: World, f: Figures, text: str) -> None:
    assert f["elbo"] > 0 < w.terms["elbo"]


def few_effective_draws(w: World, f: Figures, text: str) -> None:
    """Weights of other draws of q, by torch.distributions."""
    generator = torch.Generator().manual_seed(21)
    target, effective = targets(w.vae, w.images), []
    for place in range(len(w.images)):
        mean, scale = w.q.mean[place], w.q.stddev[place]
        size = (int(f["samples"]), mean.numel())
        z = mean + scale * torch.randn(size, generator=generator, dtype=mean.dtype)
        weights = log_likelihood(w.vae, z, target[place]) + Normal(0.0, 1.0).log_prob(z).sum(1)
        shares = (weights - Normal(mean, scale).log_prob(z).sum(1)).softmax(0)
        effective.append(float(1 / shares.square().sum()))
    assert abs(f["effective_samples"] - np.mean(effective)) < 0.3
    assert f["effective_samples"] < 1.5
    near(f["evidence"], w.numbers.gap.elbo + w.numbers.gap.nats)


def deviation_at_its_floor(w: World, f: Figures, text: str) -> None:
    near(f["levels"], 256 * sigma_of(w.vae).item())
    assert f["levels"] < 1.05


def no_sign_of_illness(w: World, f: Figures, text: str) -> None:
    near(f["kl"], w.terms["kl"], 1e-3)
    active(w, f, text)
    assert f["kl"] >= 0.1
    assert f["active_units"] >= f["latent_dimensions"] / 10
    assert math.isfinite(w.terms["elbo"])
    assert w.terms["elbo"] <= 0


HEALTH_CLAIMS: dict[Check, Callable[[World, Figures, str], None]] = {
    Check.COLLAPSED: collapsed,
    Check.FEW_ACTIVE: few_active,
    Check.DECODER_IGNORES_Z: decoder_ignores_z,
    Check.NOT_FINITE: not_finite,
    Check.POSITIVE_ELBO: positive_elbo,
    Check.FEW_EFFECTIVE_DRAWS: few_effective_draws,
    Check.DEVIATION_AT_ITS_FLOOR: deviation_at_its_floor,
    Check.NO_SIGN_OF_ILLNESS: no_sign_of_illness,
}
