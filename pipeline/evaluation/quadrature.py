"""A model with one or two latent dimensions has no secrets: every integral over z is a sum.

The midpoint rule on a smooth function that has died away at the grid's border converges faster
than any power of the spacing (Trefethen & Weideman 2014), so that nats are exact to many digits.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ModelError
from pipeline.evaluation.sums import evaluating, seen_images
from pipeline.vae import VAE, Noise, Posterior

_CELL = 0.2
"""Of the first grid, in deviations of the prior; cells that matter are made smaller."""
_REACH = 7.0
"""Deviations of the prior to each side: beyond lie 3e-12 of it."""
_NATS_BELOW = 40.0
"""Cells whose density is this far below the peak, and that touch no other cell, are left out."""
_VALUES = 4_000_000
"""Pixels scored at once: 32 MB in float64."""


@dataclass(frozen=True)
class Quadrature:
    """Exact numbers of N images in float64 nats, each `[N]`.

    `error` is what halving the spacing changed: the largest difference of any number below.
    """

    log_evidence: Tensor
    """log p(x)."""
    kl_q_posterior: Tensor
    """KL(q(z|x) || p(z|x)): log p(x) - ELBO."""
    kl_posterior_q: Tensor
    """KL(p(z|x) || q(z|x))."""
    error: float


@dataclass(frozen=True)
class Window:
    """Densities over the part of latent space where an image's true posterior lies.

    `true` and `approximate` are p(z|x) and q(z|x), `[n, n]` with z1 along the last axis, on the
    coordinates `axes` `[2, n]`.
    """

    axes: Tensor
    true: Tensor
    approximate: Tensor


def integrate(vae: VAE, images: Tensor, noise: Noise) -> Quadrature:
    """log p(x) and both KLs between q and the true posterior, of uint8 images `[N, C, H, W]`.

    `noise.pixels` fixes the binarisation or dequantisation. Raises `ModelError` for a latent of
    more than two dimensions.
    """
    rows = []
    for problem in _problems(vae, images, noise):
        cells, refinement = problem.cells(_NATS_BELOW), problem.refinement()
        coarse = problem.numbers(cells, refinement)
        fine = problem.numbers(cells, 2 * refinement)
        rows.append(torch.stack([fine, (fine - coarse).abs()]))
    values = torch.stack(rows)
    evidence, kl_q, kl_p = values[:, 0].unbind(1)
    return Quadrature(evidence, kl_q, kl_p, float(values[:, 1].max()))


def windows(vae: VAE, images: Tensor, noise: Noise, points: int = 96) -> list[Window]:
    """What a picture of true and approximate posteriors needs; two latent dimensions only."""
    found = []
    for problem in _problems(vae, images, noise):
        cells = problem.cells(nats_below=9.0)
        low, high = cells.amin(dim=0) - _CELL / 2, cells.amax(dim=0) + _CELL / 2
        side = float((high - low).max()) / 2
        steps = (torch.arange(points, dtype=torch.float64) + 0.5) / points * 2 - 1
        axes = (low + high)[:, None] / 2 + side * steps[None]
        grid = torch.cartesian_prod(axes[1], axes[0]).flip(1)
        joint, log_q = problem.densities(grid)
        evidence = problem.numbers(problem.cells(_NATS_BELOW), problem.refinement())[0]
        true = (joint - evidence).exp()
        found.append(Window(axes, true.view(points, points), log_q.exp().view(points, points)))
    return found


@dataclass(frozen=True)
class _Problem:
    """One image: its posterior q, what is scored, and a float64 model."""

    vae: VAE
    posterior: Posterior
    target: Tensor

    def numbers(self, cells: Tensor, refinement: int) -> Tensor:
        """log p(x), KL(q || p(z|x)), KL(p(z|x) || q) with cells split `refinement` times."""
        spacing = _CELL / refinement
        steps = (torch.arange(refinement, dtype=torch.float64) + 0.5) * spacing - _CELL / 2
        inside = torch.cartesian_prod(*[steps] * cells.shape[1]).view(-1, cells.shape[1])
        joint, log_q = self.densities((cells[:, None] + inside[None]).flatten(0, 1))
        log_area = cells.shape[1] * math.log(spacing)
        evidence = joint.logsumexp(0) + log_area
        log_posterior = joint - evidence
        q, posterior = (log_q + log_area).exp(), (log_posterior + log_area).exp()
        kl_q = (q * (log_q - log_posterior)).sum()
        return torch.stack([evidence, kl_q, (posterior * (log_posterior - log_q)).sum()])

    def cells(self, nats_below: float) -> Tensor:
        """Centres `[M, D]` of the cells that q or the true posterior reaches, and their neighbours.

        A picture asks for fewer nats below the peak than an integral.
        """
        spread = (0.5 * self.posterior.log_variance).exp()
        reach = max(_REACH, float((self.posterior.mean.abs() + 9 * spread).max()))
        count = math.ceil(reach / _CELL)
        centres = (torch.arange(-count, count, dtype=torch.float64) + 0.5) * _CELL
        dimensions = self.posterior.mean.numel()
        grid = torch.cartesian_prod(*[centres] * dimensions).view(-1, dimensions)
        joint, log_q = self.densities(grid)
        reached = (joint > joint.max() - nats_below) | (log_q > log_q.max() - nats_below)
        mask = reached.double().view(1, 1, *[2 * count] * dimensions)
        grown = (F.max_pool1d if dimensions == 1 else F.max_pool2d)(mask, 3, 1, 1)
        return grid[grown.flatten() > 0]

    def refinement(self) -> int:
        """Splits a cell so that the narrower of q's deviations holds 1.5 points (then 3)."""
        narrowest = float((0.5 * self.posterior.log_variance).exp().min())
        return max(2, math.ceil(1.5 * _CELL / narrowest))

    def densities(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z|x) at latents `[M, D]`: `[M]` each."""
        latents = points.view(-1, *self.posterior.mean.shape[1:])
        chunk = max(1, _VALUES // self.target.numel())
        likelihoods = []
        for part in torch.split(latents, chunk):
            parameters = self.vae.decode_parameters(part)
            target = self.target.expand(len(part), *self.target.shape[1:])
            likelihoods.append(self.vae.likelihood.log_prob(parameters, target))
        joint = torch.cat(likelihoods) + self.vae.prior.log_prob(latents)
        return joint, self.posterior.log_prob(latents[None])[0]


def _problems(vae: VAE, images: Tensor, noise: Noise) -> Iterator[_Problem]:
    dimensions = vae.latent.dimensions
    if dimensions > 2:
        raise ModelError(
            f"quadrature needs one or two latent dimensions, and this model has {dimensions}. The "
            "IWAE bound is there for it."
        )
    exact = copy.deepcopy(vae).cpu().double()
    images, pixels = images.cpu(), noise.pixels.cpu()
    with torch.no_grad(), evaluating(exact):
        seen = seen_images(vae, images, Noise(noise.posterior, pixels))
        targets = exact.likelihood.target(images, pixels.double())
        for place in range(len(images)):
            posterior = exact.encode(seen[place : place + 1])
            yield _Problem(exact, posterior, targets[place : place + 1])
