"""The evidence lower bound of an image, term by term and in nats.

log p(x) >= ELBO = E_q log p(x|z) - KL(q(z|x) || p(z)); everything is per image, with constants, in
float32 outside autocast: an image costs about 1e4 nats, and bfloat16 steps by 64 there.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from pipeline.vae.likelihoods import Likelihood
from pipeline.vae.posterior import Posterior
from pipeline.vae.prior import Prior


@dataclass(frozen=True)
class ElboTerms:
    """Terms of B images, each [B] float32 in nats, with their graph.

    `elbo = log_likelihood - kl`, `kl = cross_entropy_q_prior - entropy_q`. `log_likelihood` is the
    mean over the K drawn latents; `log_likelihood_at_mean` is None unless asked for (it is no term
    of any bound: by Jensen it may lie above E log p(x|z)).
    """

    COMPONENTS: ClassVar[tuple[str, ...]] = (
        "elbo",
        "log_likelihood",
        "kl",
        "entropy_q",
        "cross_entropy_q_prior",
        "log_likelihood_at_mean",
    )

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    entropy_q: Tensor
    cross_entropy_q_prior: Tensor
    log_likelihood_at_mean: Tensor | None
    kl_per_dimension: Tensor
    """[B, Z*h*w]; sums to `kl`."""
    log_weights: Tensor
    """[B, K]: log p(x, z_k) - log q(z_k|x) of each drawn latent."""


@dataclass(frozen=True)
class Drawn:
    """What one forward pass of B images gives.

    `samples` are the drawn latents [B, K, Z, h, w]; `parameters` the likelihood's [B, K, P, H, W],
    or [B, K + 1, P, H, W] when the last ones are decoded from the posterior's mean.
    """

    posterior: Posterior
    samples: Tensor
    parameters: Tensor


def elbo_terms(likelihood: Likelihood, prior: Prior, drawn: Drawn, target: Tensor) -> ElboTerms:
    """All terms for targets [B, C, H, W]."""
    posterior, samples, parameters = drawn.posterior, drawn.samples, drawn.parameters
    count, repeats = samples.shape[1], parameters.shape[1]
    repeated = target if repeats == 1 else target.repeat_interleave(repeats, 0)
    conditional = likelihood.log_prob(parameters.flatten(0, 1), repeated).view(-1, repeats)
    kl_per_dimension = prior.kl_per_dimension(posterior)
    kl = kl_per_dimension.sum(1)
    log_likelihood = conditional[:, :count].mean(1)
    log_weights = prior.log_prob(samples) - posterior.log_prob(samples)
    return ElboTerms(
        elbo=log_likelihood - kl,
        log_likelihood=log_likelihood,
        kl=kl,
        entropy_q=posterior.entropy(),
        cross_entropy_q_prior=prior.cross_entropy(posterior),
        log_likelihood_at_mean=conditional[:, count] if repeats > count else None,
        kl_per_dimension=kl_per_dimension,
        log_weights=conditional[:, :count] + log_weights,
    )
