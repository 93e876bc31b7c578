"""What the latent code holds: mutual information, marginal KL, and what an active unit is.

Hoffman & Johnson 2016, "ELBO surgery": the mean KL of a data set's posteriors splits into
I(n; z), what z tells about which image it came from, and KL(q(z) || p(z)), how far the aggregated
posterior q(z) = (1/N) sum_n q(z|x_n) is from the prior. Everything is in nats, sums in float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.vae.prior import kl_to_standard_normal

ACTIVE_VARIANCE = 0.01
"""Burda et al. 2016: an active dimension's posterior mean has a variance over images above it."""

_CHUNK = 2**22  # elements of one block of pairwise densities: 32 MiB of float64


@dataclass(frozen=True)
class Surgery:
    """The split of the mean KL over `images` posteriors: kl = mutual_information + marginal_kl.

    The mutual information with the image's number can't exceed `cap` = log N: near it, the split
    says little about the density that the images came from, and a larger N is needed. `of`: which
    images.
    """

    images: int
    kl: float
    mutual_information: float
    mutual_information_error: float
    marginal_kl: float
    cap: float
    of: Literal["hold-out", "training"] = "hold-out"

    @property
    def is_at_cap(self) -> bool:
        """Whether N images can't show more: then the split is a bound on both sides."""
        return self.mutual_information > 0.95 * self.cap


def split_kl(means: Tensor, log_variances: Tensor, noise: Tensor) -> Surgery:
    """The surgery of diagonal Gaussian posteriors `[N, D]` with standard normal draws `[S, N, D]`.

    log q(z|x_n) - log q(z) is averaged over the draws: each of its values is at most log N, and it
    hardly varies where posteriors don't overlap. The mean KL is analytic, the marginal KL the rest.
    `mutual_information_error` is one standard error over images.
    """
    mu, log_variance = means.double(), log_variances.double()
    variance = log_variance.exp()
    count = len(mu)
    kl = kl_to_standard_normal(mu, log_variance).sum(dim=1)
    # log N(z; mu, v) = z^2 . (-1/2v) + z . (mu/v) + offset: pairwise densities are two products.
    quadratic, linear = (-0.5 / variance).T, (mu / variance).T
    offset = -0.5 * (mu.square() / variance + log_variance + math.log(2 * math.pi)).sum(dim=1)
    information = torch.zeros(count, dtype=torch.float64)
    rows = max(1, _CHUNK // count)
    for draw in noise.double():
        z = mu + (0.5 * log_variance).exp() * draw
        own = -0.5 * (draw.square() + log_variance + math.log(2 * math.pi)).sum(dim=1)
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            density = z[part].square() @ quadratic + z[part] @ linear + offset
            mixture = torch.logsumexp(density, dim=1) - math.log(count)
            information[part] += (own[part] - mixture).cpu() / len(noise)
    mutual = float(information.mean())
    error = float(information.std(correction=1)) / math.sqrt(count) if count > 1 else math.inf
    mean_kl = float(kl.mean())
    return Surgery(
        images=count,
        kl=mean_kl,
        mutual_information=mutual,
        mutual_information_error=error,
        marginal_kl=mean_kl - mutual,
        cap=math.log(count),
    )
