from typing import Literal

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from pipeline.vae.posterior import FullPosterior, num_moments, posterior_from_moments
from pipeline.vae.prior import Latent, Prior, kl_to_standard_normal

SHAPE = (3, 1, 1)
PRIOR = Prior(Latent(SHAPE))


Kind = Literal["diagonal", "full"]


def moments(kind: Kind) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, num_moments(kind, 3), 1, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_every_number_agrees_with_torch_distributions(kind: Kind) -> None:
    posterior = posterior_from_moments(kind, moments(kind), SHAPE)
    mean = posterior.mean.flatten(1)
    prior = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    factor = (
        posterior.cholesky
        if isinstance(posterior, FullPosterior)
        else torch.diag_embed((0.5 * posterior.log_variance.flatten(1)).exp())
    )
    oracle = MultivariateNormal(mean, scale_tril=factor)
    noise = torch.randn(4, 7, *SHAPE, dtype=torch.float64)
    latents = posterior.sample(noise)
    torch.testing.assert_close(PRIOR.kl(posterior), kl_divergence(oracle, prior))
    torch.testing.assert_close(posterior.entropy(), oracle.entropy())
    torch.testing.assert_close(
        posterior.log_variance.flatten(1), oracle.covariance_matrix.diagonal(dim1=1, dim2=2).log()
    )
    expected = oracle.log_prob(latents.flatten(2).transpose(0, 1)).T
    torch.testing.assert_close(posterior.log_prob(latents), expected)
    torch.testing.assert_close(posterior.log_prob(latents[:, 2]), expected[:, 2])
    torch.testing.assert_close(posterior.sample(noise[:, 2]), latents[:, 2])
    torch.testing.assert_close(
        PRIOR.cross_entropy(posterior) - posterior.entropy(), PRIOR.kl(posterior)
    )
    assert bool((PRIOR.kl_per_dimension(posterior) >= 0).all())


def test_kl_of_a_nearly_collapsed_dimension_is_positive_and_right() -> None:
    mean, log_variance = torch.zeros(1), torch.tensor([1e-3])
    # 2.5008e-7 exactly; the naive float32 form gives 2.618e-7.
    assert float(kl_to_standard_normal(mean, log_variance)) == pytest.approx(2.50083e-7, rel=1e-3)


def test_kl_reads_log_variance_and_not_deviation() -> None:
    found = kl_to_standard_normal(torch.tensor(1.0), torch.tensor(0.25).log())
    # N(1, 0.5^2): sigma for sigma^2 gives 0.596574, log-variance as deviation 0.574361.
    assert float(found) == pytest.approx(0.818147, abs=1e-6)


def test_total_kl_is_the_sum_over_dimensions_and_not_their_mean() -> None:
    posterior = posterior_from_moments("diagonal", torch.ones(2, 200, 1, 1), (100, 1, 1))
    one = kl_divergence(Normal(1.0, torch.tensor(0.5).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(PRIOR.kl(posterior), (100 * one).expand(2))


def test_log_variances_out_of_range_are_cut() -> None:
    raw = torch.zeros(2, 6, 1, 1)
    raw[0, 3:] = torch.tensor([-31.0, 21.0, 3.0]).view(3, 1, 1)
    posterior = posterior_from_moments("diagonal", raw, SHAPE)
    assert posterior.log_variance[0].flatten().tolist() == [-30, 20, 3]


def test_samples_have_the_variance_and_not_unit_deviation() -> None:
    raw = torch.tensor([2.0, -4.0]).view(1, 2, 1, 1)
    posterior = posterior_from_moments("diagonal", raw, (1, 1, 1))
    draws = posterior.sample(torch.randn(1, 200_000, 1, 1, 1, generator=torch.manual_seed(0)))
    oracle = Independent(Normal(2.0, torch.tensor(-2.0).exp()), 0)
    assert float(draws.mean()) == pytest.approx(float(oracle.mean), abs=2e-3)
    assert float(draws.std()) == pytest.approx(float(oracle.stddev), rel=0.01)
