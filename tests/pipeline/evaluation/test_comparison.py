import copy

import pytest
import scipy.stats

from pipeline.errors import ConfigError
from pipeline.evaluation.comparison import Candidate, check_comparable, compare
from tests.support.digit_findings import evaluated, numbers_of
from tests.support.digit_models import digits_vae
from tests.support.presence import present


def candidate(name: str, likelihood: str = "gaussian", beta: float = 1.0) -> Candidate:
    measured, _ = evaluated(likelihood, beta)
    return Candidate(name, measured, numbers_of(likelihood, beta), f"{likelihood} {beta}")


def test_differences_are_paired_over_images_with_scipys_interval() -> None:
    first, other = candidate("vae"), candidate("collapsed", beta=500.0)
    found = compare([first, other]).differences["collapsed"]["elbo"]
    paired = other.measured.column("elbo") - first.measured.column("elbo")
    low, high = scipy.stats.norm.interval(0.95, paired.mean(), scipy.stats.sem(paired))
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-3)
    assert found.high < 0


def test_the_table_sets_gap_reconstruction_sampling_and_neighbours_side_by_side() -> None:
    table = compare([candidate("vae"), candidate("collapsed", beta=500.0)]).table
    assert table["vae"].posterior_gap > table["collapsed"].posterior_gap
    assert table["vae"].reconstruction_psnr > table["collapsed"].reconstruction_psnr
    found = {name: present(row.neighbour_agreement) for name, row in table.items()}
    assert found["vae"] > found["collapsed"]
    assert {"sample_psnr_to_nearest", "marginal_kl", "mixture_gain"} <= set(vars(table["vae"]))


def test_the_same_weights_under_another_name_differ_by_nothing_and_are_named() -> None:
    found = compare([candidate("vae"), candidate("again"), candidate("other", beta=500.0)])
    assert found.same_weights == ["again"]
    assert set(vars(found.differences["again"]["elbo"]).values()) == {0.0}


def test_bernoulli_is_not_compared_with_a_density() -> None:
    with pytest.raises(ConfigError, match="scores the binarised image"):
        check_comparable({"vae": digits_vae(), "binary": digits_vae("bernoulli")})


def test_other_preprocessing_is_not_compared() -> None:
    larger = copy.copy(digits_vae())
    larger.preprocess = larger.preprocess.model_copy(update={"image_size": 16})
    with pytest.raises(ConfigError, match="their images differ"):
        check_comparable({"vae": digits_vae(), "larger": larger})
