import math

import numpy as np
import pytest
import torch

from pipeline.evaluation.kl_split import split_kl


def test_kl_splits_into_mutual_information_and_marginal_kl_as_quadrature_says() -> None:
    means = torch.tensor([[-1.2], [0.3], [1.9], [2.1]])
    log_variances = torch.tensor([[-1.0], [-2.0], [-0.5], [-1.5]])
    noise = torch.randn(20_000, 4, 1, generator=torch.Generator().manual_seed(0))
    found = split_kl(means, log_variances, noise)

    grid = np.linspace(-12, 12, 200_001)
    mu, variance = means.numpy(), log_variances.exp().numpy()
    each = np.exp(-((grid - mu) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    mixture = each.mean(axis=0)
    prior = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    step = grid[1] - grid[0]
    information = (
        np.mean([(q * np.log(np.maximum(q, 1e-300) / mixture)).sum() for q in each]) * step
    )
    marginal = (mixture * np.log(mixture / prior)).sum() * step
    assert found.mutual_information == pytest.approx(information, abs=5e-3)
    assert found.marginal_kl == pytest.approx(marginal, abs=5e-3)
    assert found.kl == pytest.approx(information + marginal, abs=1e-6)


def test_mutual_information_never_passes_log_n_and_reaches_it_for_separate_codes() -> None:
    means = torch.arange(50.0)[:, None] * 100
    noise = torch.randn(3, 50, 1, generator=torch.Generator().manual_seed(1))
    found = split_kl(means, torch.zeros(50, 1), noise)
    assert found.mutual_information <= found.cap
    assert found.mutual_information == pytest.approx(math.log(50), abs=1e-9)


def test_the_marginal_kl_of_gaussian_data_under_the_optimal_linear_model_is_zero() -> None:
    # Probabilistic PCA at its optimum: means N(0, 1 - s2/lam), posterior variance s2/lam, so that
    # the aggregated posterior is the prior and the mutual information the whole rate.
    share = torch.tensor([0.4, 0.7], dtype=torch.float64)  # s2 / lam
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4000, 2, generator=generator, dtype=torch.float64) * (1 - share).sqrt()
    log_variances = share.log().expand(4000, 2)
    noise = torch.randn(2, 4000, 2, generator=generator, dtype=torch.float64)
    found = split_kl(means, log_variances, noise)
    rate = float(-0.5 * share.log().sum())
    assert found.mutual_information == pytest.approx(rate, abs=0.03)
    assert abs(found.marginal_kl) < 0.03
