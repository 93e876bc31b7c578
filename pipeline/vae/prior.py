"""The space of z and p(z) over it: the one place that says that the prior is N(0, I).

Values keep the dtype of what they are computed from and expect to run outside autocast.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.vae.posterior import LOG_2PI, Posterior


@dataclass(frozen=True)
class Latent:
    """The space that z lies in; `shape` is (Z, h, w)."""

    shape: tuple[int, int, int]

    @property
    def dimensions(self) -> int:
        """Z * h * w."""
        return math.prod(self.shape)

    def unflattened(self, points: Tensor) -> Tensor:
        """Latents [N, Z, h, w] of points [N, Z*h*w]."""
        return points.view(-1, *self.shape)


@dataclass(frozen=True)
class Prior:
    """p(z) = N(0, I) over one latent space. Another family answers the same questions."""

    latent: Latent

    def log_prob(self, latents: Tensor) -> Tensor:
        """log p(z) in nats: [...] for latents [..., Z, h, w]."""
        return log_density(latents).flatten(-3).sum(-1)

    def sample(self, noise: Tensor) -> Tensor:
        """z from standard normal noise [..., Z, h, w]: here the noise itself."""
        return noise

    def kl_per_dimension(self, posterior: Posterior) -> Tensor:
        """[B, Z*h*w] nats, each >= 0; they sum to KL(q(z|x) || p(z)).

        By the chain rule: dimension i's KL plus its information about those before it, which is
        none for independent dimensions.
        """
        chain = posterior.chain()
        own = kl_to_standard_normal(chain.mean, chain.log_variance)
        return own if chain.explained is None else own + 0.5 * chain.explained

    def kl(self, posterior: Posterior) -> Tensor:
        """KL(q(z|x) || p(z)): [B] nats, >= 0."""
        return self.kl_per_dimension(posterior).sum(1)

    def cross_entropy(self, posterior: Posterior) -> Tensor:
        """-E_q log p(z): [B] nats; the KL is this less q's entropy."""
        second_moment = posterior.mean.square() + posterior.log_variance.exp()
        return 0.5 * (second_moment + LOG_2PI).flatten(1).sum(1)


def log_density(values: Tensor) -> Tensor:
    """log N(value; 0, 1) elementwise, in nats: each dimension's own prior."""
    return -0.5 * (values.square() + LOG_2PI)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) elementwise, in nats, >= 0.

    Kingma & Welling 2013, appendix B. `expm1` keeps it positive near the prior: at log-variance
    1e-3 the naive float32 form is off by 5%, and bfloat16 gives -5e-4 where 2.5e-7 is right.
    """
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)
