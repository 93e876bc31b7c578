import dataclasses

import pytest
import scipy.stats

from pipeline.errors import ConfigError
from pipeline.training.comparison import Candidate, compare
from tests.pipeline.training.digits import digits_vae
from tests.pipeline.training.findings_of import evaluated, numbers_of


def candidate(name: str, likelihood: str = "gaussian", beta: float = 1.0) -> Candidate:
    measured, _ = evaluated(likelihood, beta)
    vae = digits_vae(likelihood, beta=beta)
    return Candidate(name, measured, numbers_of(likelihood, beta), vae.preprocess, likelihood)


def test_differences_are_paired_over_images_with_scipys_interval():
    first, other = candidate("vae"), candidate("collapsed", beta=500.0)
    found = compare([first, other])["differences"]["collapsed"]["elbo"]
    paired = other.measured.column("elbo") - first.measured.column("elbo")
    low, high = scipy.stats.norm.interval(0.95, paired.mean(), scipy.stats.sem(paired))
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-3)
    assert found["high"] < 0


def test_the_table_sets_gap_reconstruction_sampling_and_neighbours_side_by_side():
    table = compare([candidate("vae"), candidate("collapsed", beta=500.0)])["table"]
    assert table["vae"]["posterior_gap"] > table["collapsed"]["posterior_gap"]
    assert table["vae"]["reconstruction_psnr"] > table["collapsed"]["reconstruction_psnr"]
    assert table["vae"]["neighbour_agreement"] > table["collapsed"]["neighbour_agreement"]
    assert {"sample_psnr_to_nearest", "marginal_kl", "mixture_gain"} <= set(table["vae"])


def test_bernoulli_is_not_compared_with_a_density():
    with pytest.raises(ConfigError, match="scores the binarised image"):
        compare([candidate("vae"), candidate("binary", "bernoulli")])


def test_other_preprocessing_is_not_compared():
    other = candidate("other")
    larger = other.preprocess.model_copy(update={"image_size": 16})
    with pytest.raises(ConfigError, match="their images differ"):
        compare([candidate("vae"), dataclasses.replace(other, preprocess=larger)])
