"""Probabilistic PCA in closed form (Tipping & Bishop 1999), put into the package's own linear VAE.

Data with exactly chosen covariance: eigenvalues `EIGENVALUES` in K directions and `NOISE` in the
rest, in units of `UNIT` (so that the deviation lies above its bound of 1/256).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.vae import VAE, build_vae
from pipeline.vae.elbo import Drawn, ElboTerms, elbo_terms
from pipeline.vae.posterior import posterior_from_moments

EIGENVALUES = torch.tensor([9.0, 4.0, 2.0, 0.6, 0.55], dtype=torch.float64)
NOISE = 0.5
UNIT = 0.05
LOCATION = 255 / 512
"""Position on [0, 1] per unit of the networks' [-1, 1]."""
SIZE = 3
PIXELS = SIZE * SIZE
LN_256 = 5.545177444479562


def data(count: int = 200) -> Tensor:
    """Positions [count, 1, 3, 3] whose sample covariance (divided by n) is exact."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(count, PIXELS, generator=generator, dtype=torch.float64)
    raw = raw - raw.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(raw.T @ raw / count), raw.T, upper=False
    ).T
    spectrum = torch.cat([EIGENVALUES, torch.full((PIXELS - 5,), NOISE)]) * UNIT**2
    return (0.5 + white * spectrum.sqrt() @ directions().T).view(count, 1, SIZE, SIZE)


def directions() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(PIXELS, PIXELS, generator=generator, dtype=torch.float64)).Q


@dataclass(frozen=True)
class Ppca:
    """A linear VAE, and p(x) = N(mean, W W' + s2 I) on positions."""

    vae: VAE
    loadings: Tensor
    variance: float

    @property
    def marginal(self) -> MultivariateNormal:
        covariance = self.loadings @ self.loadings.T
        covariance = covariance + self.variance * torch.eye(PIXELS, dtype=torch.float64)
        return MultivariateNormal(torch.full((PIXELS,), 0.5, dtype=torch.float64), covariance)

    def log_prob(self, positions: Tensor) -> Tensor:
        """log p(x) in nats per level unit."""
        return self.marginal.log_prob(positions.flatten(1)) - PIXELS * LN_256

    def true_posterior(self, positions: Tensor) -> MultivariateNormal:
        gram = self.loadings.T @ self.loadings
        gram = gram + self.variance * torch.eye(len(gram), dtype=torch.float64)
        mean = torch.linalg.solve(gram, self.loadings.T @ (positions.flatten(1) - 0.5).T).T
        return MultivariateNormal(mean, self.variance * torch.linalg.inv(gram))


def optimum(posterior: str) -> Ppca:
    """The maximum-likelihood solution with the best posterior of its kind."""
    variance = NOISE * UNIT**2
    loadings = directions()[:, :5] * ((EIGENVALUES - NOISE) * UNIT**2).sqrt()
    return with_loadings(posterior, loadings, variance)


def with_loadings(posterior: str, loadings: Tensor, variance: float) -> Ppca:
    latents = loadings.shape[1]
    vae = build_vae(
        ModelConfig(
            kind="linear", latent_channels=latents, posterior=posterior, sigma=variance**0.5
        ),
        PreprocessConfig(image_size=SIZE, channels=1),
    ).double()
    gram = loadings.T @ loadings + variance * torch.eye(latents, dtype=torch.float64)
    network = vae.network
    with torch.no_grad():
        exact = torch.tensor(variance, dtype=torch.float64).sqrt()
        vae.get_parameter("likelihood.scale").copy_((exact - 1 / 256).log() / 10)
        network.get_parameter("decoder.weight").copy_(loadings / LOCATION)
        network.get_parameter("decoder.bias").zero_()
        network.get_parameter("encoder.weight").copy_(
            torch.linalg.solve(gram, loadings.T) * LOCATION
        )
        network.get_parameter("encoder.bias").zero_()
        if posterior == "diagonal":
            network.get_parameter("covariance").copy_((variance / gram.diagonal()).log())
        else:
            factor = torch.linalg.cholesky(variance * torch.linalg.inv(gram))
            below = factor[*torch.tril_indices(latents, latents, -1)]
            network.get_parameter("covariance").copy_(
                torch.cat([2 * factor.diagonal().log(), below])
            )
    return Ppca(vae, loadings, variance)


def terms_of(vae: VAE, positions: Tensor, noise: Tensor) -> ElboTerms:
    """The package's terms for positions themselves, with noise [B, K, D, 1, 1]."""
    moments = vae.network.encode((positions - 0.5) / LOCATION)
    posterior = posterior_from_moments(vae.model_config.posterior, moments, vae.latent_shape)
    samples = posterior.sample(noise)
    parameters = vae.decode_parameters(samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
    return elbo_terms(vae.likelihood, vae.prior, Drawn(posterior, samples, parameters), positions)


def exact_noise(batch: int, latents: int) -> Tensor:
    """2D points of equal weight with the moments of N(0, I) up to the third: E of a quadratic."""
    eye = torch.eye(latents, dtype=torch.float64) * latents**0.5
    points = torch.cat([eye, -eye])[None, :, :, None, None]
    return points.expand(batch, -1, -1, -1, -1)
