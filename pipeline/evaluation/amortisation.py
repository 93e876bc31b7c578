"""The best q of its family for each image alone: what the encoder could have said, and did not.

Cremer et al. 2018: the amortisation gap is what optimising q for each image wins over the encoder's
q; the approximation gap is what even that q misses, because its family can't hold p(z|x).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.progress import Progress
from pipeline.vae import VAE, Noise, Posterior, draw_noise
from pipeline.vae.posterior import posterior_from_moments

OPTIMISING_DRAWS = 4
"""For each step's gradient, whose noise averages out over the steps."""
_SCORING_DRAWS = 64
"""For the score alone, which is told with its error: once, so they may be many."""
_CHOOSING, _SCORING, _TRAINING, _WEIGHING = -2, -3, -10, -1_000_000
"""Noise of one purpose each: a q that was chosen by the draws that score it would look too good."""
_LEARNING_RATE = 0.02
"""Of Adam, in units of the prior's deviation: means move by some deviations in 200 steps."""


@dataclass(frozen=True)
class OptimisedPosterior:
    """The q found for each of B images, with the ELBO (`[B]`, float64 nats) of the encoder's and
    of this one, both by the same 64 draws, which no choice has looked at.
    """

    posterior: Posterior
    encoder_elbo: Tensor
    elbo: Tensor


def optimise_posterior(
    vae: VAE,
    start: Posterior,
    target: Tensor,
    seed: int,
    steps: int,
    *,
    progress: Progress | None = None,
) -> OptimisedPosterior:
    """`steps` of Adam on fresh noise from the encoder's q, for targets `[B, C, H, W]`.

    Image i's noise is that of slot i. An image whose q became worse keeps the encoder's, which is
    a member of the family too. `progress` counts the gradients, one for each image and draw.
    """
    slots = range(len(target))
    begin = _moments(vae, start)
    moments = begin.clone().requires_grad_()
    optimizer = torch.optim.Adam([moments], lr=_LEARNING_RATE)
    for step in range(steps):
        fresh = draw_noise(
            vae, seed, _TRAINING - step, slots, target.device, samples=OPTIMISING_DRAWS
        )
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad():
            loss = -_elbo(vae, moments, target, fresh).sum()
        (moments.grad,) = torch.autograd.grad(loss, [moments])
        optimizer.step()
        if progress is not None:
            progress.advance(len(target) * OPTIMISING_DRAWS)
    found = moments.detach()
    choosing = draw_noise(vae, seed, _CHOOSING, slots, target.device, samples=_SCORING_DRAWS)
    better = _score(vae, found, target, choosing) > _score(vae, begin, target, choosing)
    spread = better.to(begin.device).view(-1, *[1] * (begin.dim() - 1))
    best = torch.where(spread, found, begin)
    scoring = draw_noise(vae, seed, _SCORING, slots, target.device, samples=_SCORING_DRAWS)
    return OptimisedPosterior(
        posterior_from_moments(vae.model_config.posterior, best, vae.latent_shape),
        _score(vae, begin, target, scoring),
        _score(vae, best, target, scoring),
    )


class ImportanceBound(NamedTuple):
    """IWAE_K of each image in nats, and how many of its K draws count: (sum w)^2 / sum w^2.

    Both `[B]`, float64.
    """

    nats: Tensor
    effective_samples: Tensor


@torch.no_grad()
def importance_bound(
    vae: VAE, posterior: Posterior, target: Tensor, seed: int, samples: int
) -> ImportanceBound:
    """Of targets `[B, C, H, W]` with K = `samples` draws of this q."""
    total = squares = torch.full((len(target),), -math.inf, dtype=torch.float64)
    for start in range(0, samples, _SCORING_DRAWS):
        draws = min(_SCORING_DRAWS, samples - start)
        noise = draw_noise(
            vae, seed, _WEIGHING - start, range(len(target)), target.device, samples=max(2, draws)
        )
        latents = posterior.sample(noise.posterior[:, :draws].to(target.dtype))
        parameters = vae.decode_parameters(latents.flatten(0, 1))
        conditional = vae.likelihood.log_prob(parameters, target.repeat_interleave(draws, 0))
        weights = conditional.view(-1, draws) + vae.prior.log_prob(latents)
        weights = (weights - posterior.log_prob(latents)).double().cpu()
        total = torch.logaddexp(total, torch.logsumexp(weights, dim=1))
        squares = torch.logaddexp(squares, torch.logsumexp(2 * weights, dim=1))
    return ImportanceBound(total - math.log(samples), torch.exp(2 * total - squares))


def _elbo(vae: VAE, moments: Tensor, target: Tensor, noise: Noise) -> Tensor:
    """The ELBO of each image under the posterior of `moments`, over all of the noise's draws."""
    posterior = posterior_from_moments(vae.model_config.posterior, moments, vae.latent_shape)
    latents = posterior.sample(noise.posterior.to(moments.dtype))
    draws = latents.shape[1]
    parameters = vae.decode_parameters(latents.flatten(0, 1))
    conditional = vae.likelihood.log_prob(parameters, target.repeat_interleave(draws, 0))
    return conditional.view(-1, draws).mean(dim=1) - vae.prior.kl(posterior)


@torch.no_grad()
def _score(vae: VAE, moments: Tensor, target: Tensor, noise: Noise) -> Tensor:
    return _elbo(vae, moments, target, noise).double().cpu()


def _moments(vae: VAE, posterior: Posterior) -> Tensor:
    """What an encoder would have said to give this posterior."""
    if vae.model_config.posterior == "diagonal":
        return torch.cat([posterior.mean, posterior.log_variance], dim=1).detach()
    factor: Tensor = posterior.cholesky  # type: ignore[attr-defined]
    rows, columns = torch.tril_indices(factor.shape[1], factor.shape[2], -1)
    diagonal = 2 * factor.diagonal(dim1=1, dim2=2).log()
    moments = torch.cat([posterior.mean.flatten(1), diagonal, factor[:, rows, columns]], dim=1)
    return moments[:, :, None, None].detach()
