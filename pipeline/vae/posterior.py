"""Approximate posteriors q(z|x); densities and entropies in nats.

Every method works in the dtype of the moments (float32, or float64 in the closed-form tests) and
expects to run outside autocast. Leading shape: B images; K samples per image come as [B, K, ...].
"""

import abc
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOG_2PI = math.log(2 * math.pi)
LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Log-variances are clamped to this, the bounds of the latent-diffusion family: variances of e^-30
to e^20. It is done where moments become a distribution, and nowhere else, so that the KL, the draw
and the stored log-variance are of one and the same normal. Of a full posterior it bounds each
dimension's variance given those before it."""


@dataclass(frozen=True)
class Chain:
    """q(z) as a product of normals, one per dimension given those before it.

    All are [B, Z*h*w]. `explained`: the variance that the dimensions before it give to each one's
    mean; None where all are independent.
    """

    mean: Tensor
    log_variance: Tensor
    explained: Tensor | None


class Posterior(abc.ABC):
    """q(z|x) of B images; `mean` and `log_variance` (of each dimension alone) are [B, Z, h, w]."""

    mean: Tensor
    log_variance: Tensor

    def __repr__(self) -> str:
        kind = str(self.mean.dtype).removeprefix("torch.")
        return f"{type(self).__name__}: mean and log_variance {kind} {list(self.mean.shape)}"

    @abc.abstractmethod
    def sample(self, noise: Tensor) -> Tensor:
        """z from standard normal noise [B, Z, h, w] or [B, K, Z, h, w]; same shape, with graph."""

    @abc.abstractmethod
    def log_prob(self, latents: Tensor) -> Tensor:
        """log q(z|x) in nats: [B] for latents [B, Z, h, w], [B, K] for [B, K, Z, h, w]."""

    @abc.abstractmethod
    def chain(self) -> Chain:
        """q(z|x) dimension by dimension: what a prior's KL is computed from."""

    @abc.abstractmethod
    def entropy(self) -> Tensor:
        """H(q(z|x)): [B] nats."""


@dataclass(frozen=True, repr=False)
class DiagonalPosterior(Posterior):
    """N(mean, diag(exp(log_variance)))."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(log_variance / 2) * noise."""
        mean, deviation = self.mean, (0.5 * self.log_variance).exp()
        if noise.dim() > mean.dim():
            mean, deviation = mean.unsqueeze(1), deviation.unsqueeze(1)
        return mean + deviation * noise

    def log_prob(self, latents: Tensor) -> Tensor:
        """Sum over dimensions of log N(z; mean, exp(log_variance))."""
        mean, log_variance = self.mean, self.log_variance
        if latents.dim() > mean.dim():
            mean, log_variance = mean.unsqueeze(1), log_variance.unsqueeze(1)
        squares = (latents - mean).square() * (-log_variance).exp()
        return -0.5 * (squares + log_variance + LOG_2PI).flatten(-3).sum(-1)

    def chain(self) -> Chain:
        """Independent dimensions."""
        return Chain(self.mean.flatten(1), self.log_variance.flatten(1), None)

    def entropy(self) -> Tensor:
        """Half the sum of log-variance + ln(2 pi e)."""
        return 0.5 * (self.log_variance + LOG_2PI + 1).flatten(1).sum(1)


@dataclass(frozen=True, repr=False)
class FullPosterior(Posterior):
    """N(mean, L L') with a lower triangular `cholesky` L [B, D, D], D = Z*h*w."""

    mean: Tensor
    cholesky: Tensor

    @property
    def log_variance(self) -> Tensor:  # type: ignore[override]
        """Of each dimension's marginal."""
        return self.cholesky.square().sum(2).log().view_as(self.mean)

    def sample(self, noise: Tensor) -> Tensor:
        """mean + L noise."""
        mean, batch = self.mean, len(self.mean)
        flat = noise.reshape(batch, -1, self.cholesky.shape[1])
        mixed = torch.einsum("bij,bkj->bki", self.cholesky, flat).reshape(noise.shape)
        return mixed + (mean.unsqueeze(1) if noise.dim() > mean.dim() else mean)

    def log_prob(self, latents: Tensor) -> Tensor:
        """log N(z; mean, L L') by a triangular solve."""
        dimensions = self.cholesky.shape[1]
        flat = latents.reshape(len(latents), -1, dimensions) - self.mean.reshape(-1, 1, dimensions)
        solved = torch.linalg.solve_triangular(self.cholesky, flat.mT, upper=False)
        squares: Tensor = solved.square().sum(1)
        log_density: Tensor = (
            -0.5 * (squares + dimensions * LOG_2PI) - self._half_log_determinant()[:, None]
        )
        return log_density if latents.dim() > self.mean.dim() else log_density[:, 0]

    def chain(self) -> Chain:
        """L's diagonal is what each dimension adds, its row below what the others say of it.

        The marginals' KLs alone would miss the total correlation of q.
        """
        log_conditional = 2 * self.cholesky.diagonal(dim1=1, dim2=2).log()
        explained = self.cholesky.tril(-1).square().sum(2)
        return Chain(self.mean.flatten(1), log_conditional, explained)

    def entropy(self) -> Tensor:
        """D/2 ln(2 pi e) + ln |L|."""
        return 0.5 * self.cholesky.shape[1] * (LOG_2PI + 1) + self._half_log_determinant()

    def _half_log_determinant(self) -> Tensor:
        return self.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)


def num_moments(kind: Literal["diagonal", "full"], dimensions: int) -> int:
    """Numbers per image that an encoder gives for a posterior over `dimensions` latents."""
    return 2 * dimensions if kind == "diagonal" else dimensions * (dimensions + 3) // 2


def posterior_from_moments(
    kind: Literal["diagonal", "full"], moments: Tensor, latent_shape: tuple[int, int, int]
) -> Posterior:
    """What an encoder says, as a distribution.

    diagonal: moments [B, 2Z, h, w], mean first, then log-variance. full: [B, D(D+3)/2, 1, 1]: mean,
    log of L's squared diagonal, and L below the diagonal row by row.
    """
    low, high = LOG_VARIANCE_RANGE
    if kind == "diagonal":
        mean, raw = moments.chunk(2, dim=1)
        return DiagonalPosterior(mean, raw.clamp(low, high))
    dimensions = math.prod(latent_shape)
    mean, raw, below = torch.split(
        moments.flatten(1), [dimensions, dimensions, dimensions * (dimensions - 1) // 2], dim=1
    )
    rows, columns = torch.tril_indices(dimensions, dimensions, -1, device=moments.device)
    cholesky = torch.diag_embed((0.5 * raw.clamp(low, high)).exp())
    cholesky = cholesky.index_put((torch.arange(len(moments))[:, None], rows, columns), below)
    return FullPosterior(mean.view(-1, *latent_shape), cholesky)
