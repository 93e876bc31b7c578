"""Is the encoder wrong, or the family it chooses from? The posterior gap, split in two.

Cremer et al. 2018: the amortisation gap is what optimising q for each image alone wins over the
encoder's q; the approximation gap is what even that q misses, because its family can't hold p(z|x).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.sums import evaluating, seen_images
from pipeline.vae import VAE, Noise, Posterior, draw_noise
from pipeline.vae.posterior import posterior_from_moments, standard_normal_log_prob

_TRAINING_DRAWS = 4
_SCORING_DRAWS = 64


@dataclass(frozen=True)
class GapSplit:
    """Means over the first `images` of the hold-out, in nats: gap = amortisation + approximation.

    Every ELBO is an average over the same 64 draws per image that the optimisation has not seen;
    `gap` is measured to IWAE with `samples` draws through the optimised q. Errors are one standard
    error over images.
    """

    images: int
    samples: int
    steps: int
    gap: float
    amortisation: float
    amortisation_error: float
    approximation: float
    approximation_error: float


def split_gap(
    vae: VAE,
    images: Tensor,
    seed: int,
    samples: int,
    steps: int = 200,
    learning_rate: float = 0.02,
) -> GapSplit:
    """The split for uint8 images `[B, C, H, W]`, which hold positions 0..B-1 of the hold-out.

    Each image's q starts at the encoder's and takes `steps` of Adam on fresh noise; an image whose
    q became worse keeps the encoder's, which is a member of the family too.
    """
    slots = range(len(images))
    noise = draw_noise(vae, seed, 0, slots, images.device)
    with evaluating(vae):
        with torch.no_grad():
            target = vae.likelihood.target(images, noise.pixels)
            start = _moments(vae, vae.encode(seen_images(vae, images, noise)))
        scoring = draw_noise(vae, seed, -2, slots, images.device, samples=_SCORING_DRAWS)
        encoder = _score(vae, start, target, scoring)
        moments = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([moments], lr=learning_rate)
        for step in range(steps):
            # The steps of training count from 1 and evaluation's own is 0, so these are apart.
            fresh = draw_noise(vae, seed, -10 - step, slots, images.device, samples=_TRAINING_DRAWS)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = -_elbo(vae, moments, target, fresh).sum()
            (moments.grad,) = torch.autograd.grad(loss, [moments])
            optimizer.step()
        found = _score(vae, moments.detach(), target, scoring)
        better = (found > encoder).to(start.device).view(-1, *[1] * (start.dim() - 1))
        best = torch.where(better, moments.detach(), start)
        optimised = torch.maximum(found, encoder)
        evidence = _evidence(vae, best, target, seed, samples)
    amortisation, approximation = optimised - encoder, evidence - optimised
    return GapSplit(
        images=len(images),
        samples=samples,
        steps=steps,
        gap=float((evidence - encoder).mean()),
        amortisation=float(amortisation.mean()),
        amortisation_error=_standard_error(amortisation),
        approximation=float(approximation.mean()),
        approximation_error=_standard_error(approximation),
    )


def _elbo(vae: VAE, moments: Tensor, target: Tensor, noise: Noise) -> Tensor:
    """The ELBO of each image under the posterior of `moments`, over all of the noise's draws."""
    posterior = posterior_from_moments(vae.model_config.posterior, moments, vae.latent_shape)
    latents = posterior.sample(noise.posterior.to(moments.dtype))
    draws = latents.shape[1]
    parameters = vae.decode_parameters(latents.flatten(0, 1))
    conditional = vae.likelihood.log_prob(parameters, target.repeat_interleave(draws, 0))
    return conditional.view(-1, draws).mean(dim=1) - posterior.kl()


def _evidence(vae: VAE, moments: Tensor, target: Tensor, seed: int, samples: int) -> Tensor:
    """IWAE_K through the optimised q, which wastes fewer draws than the encoder's: `[B]`."""
    total = torch.full((len(moments),), -math.inf, dtype=torch.float64)
    posterior = posterior_from_moments(vae.model_config.posterior, moments, vae.latent_shape)
    with torch.no_grad():
        for start in range(0, samples, _SCORING_DRAWS):
            draws = min(_SCORING_DRAWS, samples - start)
            step = -1_000_000 - start
            noise = draw_noise(
                vae, seed, step, range(len(moments)), moments.device, samples=max(2, draws)
            )
            latents = posterior.sample(noise.posterior[:, :draws].to(moments.dtype))
            parameters = vae.decode_parameters(latents.flatten(0, 1))
            conditional = vae.likelihood.log_prob(parameters, target.repeat_interleave(draws, 0))
            weights = conditional.view(-1, draws) + standard_normal_log_prob(latents)
            weights = (weights - posterior.log_prob(latents)).double().cpu()
            total = torch.logaddexp(total, torch.logsumexp(weights, dim=1))
    return total - math.log(samples)


def _score(vae: VAE, moments: Tensor, target: Tensor, noise: Noise) -> Tensor:
    with torch.no_grad():
        return _elbo(vae, moments, target, noise).double().cpu()


def _moments(vae: VAE, posterior: Posterior) -> Tensor:
    """What an encoder would have said to give this posterior."""
    if vae.model_config.posterior == "diagonal":
        return torch.cat([posterior.mean, posterior.log_variance], dim=1)
    factor: Tensor = posterior.cholesky  # type: ignore[attr-defined]
    rows, columns = torch.tril_indices(factor.shape[1], factor.shape[2], -1)
    diagonal = 2 * factor.diagonal(dim1=1, dim2=2).log()
    moments = torch.cat([posterior.mean.flatten(1), diagonal, factor[:, rows, columns]], dim=1)
    return moments[:, :, None, None]


def _standard_error(values: Tensor) -> float:
    return float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
