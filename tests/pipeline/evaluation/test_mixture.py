import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from pipeline.evaluation.mixture import choose_mixture, fit_mixture
from pipeline.vae.prior import log_density


def three_clouds() -> np.ndarray:
    rng = np.random.default_rng(0)
    shapes = [np.diag([0.3, 1.0]), np.array([[1.0, 0.8], [0.0, 0.3]]), np.diag([0.5, 0.5])]
    centres = [(-6, 0), (0, 5), (6, -2)]
    clouds = [c + rng.normal(size=(300, 2)) @ s for c, s in zip(centres, shapes, strict=True)]
    return np.concatenate(clouds)


def test_three_clouds_are_found_with_scikit_learns_likelihood() -> None:
    points = three_clouds()
    theirs = GaussianMixture(3, random_state=0, n_init=5, tol=1e-6).fit(points)
    ours = fit_mixture(torch.from_numpy(points), 3, tolerance=1e-8)
    assert float(ours.log_prob(torch.from_numpy(points)).mean()) == pytest.approx(
        theirs.score(points), abs=1e-3
    )


def test_log_prob_is_scikit_learns_for_the_same_parameters() -> None:
    points = three_clouds()
    ours = fit_mixture(torch.from_numpy(points), 3)
    theirs = GaussianMixture(3)
    theirs.weights_, theirs.means_ = ours.log_weights.exp().numpy(), ours.means.numpy()
    covariances = (ours.factors @ ours.factors.mT).numpy()
    theirs.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    theirs.covariances_ = covariances
    assert ours.log_prob(torch.from_numpy(points)).numpy() == pytest.approx(
        theirs.score_samples(points), abs=1e-8
    )


def test_samples_have_the_mixtures_mean_and_a_diagonal_shape_works_in_many_dimensions() -> None:
    points = torch.randn(600, 200, generator=torch.Generator().manual_seed(0)) * 0.1 + 3
    mixture = choose_mixture(points)
    draws = mixture.sample(2000, torch.Generator().manual_seed(0))
    assert mixture.factors.dim() == 2
    assert float(draws.mean()) == pytest.approx(3.0, abs=0.01)
    assert float(draws.std()) == pytest.approx(0.1, abs=0.01)


def test_codes_that_fill_the_prior_gain_nothing_from_a_mixture() -> None:
    points = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))
    mixture = choose_mixture(points[::2])
    gain = mixture.log_prob(points[1::2]) - log_density(points[1::2]).sum(1)
    assert abs(float(gain.mean())) < 0.05
