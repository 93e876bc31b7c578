import pytest

from pipeline.evaluation.health import check_health
from tests.support.digit_findings import numbers_of


def test_a_good_model_gets_no_warning() -> None:
    assert check_health(numbers_of(), sigma=0.2) == []


def test_a_really_collapsed_model_is_told_so() -> None:
    assert "Posterior collapse" in check_health(numbers_of(beta=500.0))[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"active_units": 1, "latent_dimensions": 64}, "Over-regularised: only 1 of 64"),
        ({"elbo": 12.0}, "The ELBO is positive"),
        ({"not_finite": 3}, "3 of 299 images have an ELBO that is not finite and"),
        ({"effective_samples": 1.1}, "only 1.10 count"),
        ({"codes": {"psnr_own": 10.05, "psnr_other": 10.0}}, "decoder ignores z"),
    ],
)
def test_each_illness_is_named(change: dict, words: str) -> None:
    warnings = check_health(numbers_of() | change)
    assert len(warnings) == 1
    assert words in warnings[0]


def test_a_deviation_at_its_floor_is_a_clamped_variance() -> None:
    assert "variance is clamped" in check_health(numbers_of(), sigma=1 / 256)[0]
