import json
import math

import numpy as np
import pytest
import scipy.stats

from pipeline.evaluation.findings import mean_and_error
from tests.support.digit_findings import COUNT, evaluated, numbers_of
from tests.support.presence import present


def test_the_gap_is_the_best_bound_and_stands_once() -> None:
    measured, findings = evaluated()
    numbers, gap = findings.numbers, findings.numbers.gap
    assert numbers.posterior_gap == gap.nats == gap.bounds[gap.method]
    own = measured.column("mean_log_weight")[: gap.images].mean()
    assert gap.evidence == pytest.approx(gap.elbo + gap.nats)
    assert gap.elbo == pytest.approx(own, abs=1.0)  # other draws of the same images
    assert present(gap.amortisation) + present(gap.remaining) == pytest.approx(gap.nats)
    assert gap.bounds["importance"] == pytest.approx(measured.column("iwae_gap")[:8].mean())


def test_means_have_scipys_standard_error() -> None:
    measured, findings = evaluated()
    expected = scipy.stats.sem(measured.column("iwae"))
    assert findings.numbers.iwae_error == pytest.approx(expected, rel=1e-6)
    assert findings.numbers.iwae >= findings.numbers.elbo


def test_rate_and_distortion_add_up_to_minus_the_elbo() -> None:
    numbers = numbers_of()
    assert numbers.rate + numbers.distortion == pytest.approx(-numbers.elbo, rel=1e-6)
    assert numbers.bits_per_dim == pytest.approx(-numbers.elbo / 64 / math.log(2))
    assert numbers.images == COUNT - 1


def test_the_surgerys_kl_is_the_evaluations() -> None:
    numbers = numbers_of()
    cut = present(numbers.surgery)
    assert cut.kl == pytest.approx(numbers.kl, rel=1e-4)
    assert cut.mutual_information <= cut.cap


def test_means_carry_the_class_and_a_collapsed_model_carries_nothing() -> None:
    assert present(numbers_of().neighbours).agreement > 0.8
    collapsed = numbers_of(beta=500.0)
    assert collapsed.active_units == 0
    assert present(collapsed.neighbours).agreement < 0.5
    assert collapsed.posterior_gap < 0.2 * numbers_of().posterior_gap


def test_reconstructions_are_closer_at_the_mean_than_at_a_draw() -> None:
    found = numbers_of().reconstruction
    assert found.psnr_mean > found.psnr_sample > 10
    assert found.ssim_mean > found.ssim_sample


def test_every_number_is_plain_json() -> None:
    text = json.dumps(numbers_of("bernoulli").to_json(), allow_nan=False)
    assert json.loads(text)["bits_per_dim"] is None


def test_missing_values_are_left_out_of_a_mean() -> None:
    assert mean_and_error(np.array([1.0, np.nan, 3.0])) == pytest.approx((2.0, 1.0))
    assert math.isnan(mean_and_error(np.array([np.nan]))[0])


def test_an_images_own_code_serves_it_better_than_anothers_unless_z_says_nothing() -> None:
    healthy = present(numbers_of().codes)
    collapsed = present(numbers_of(beta=500.0).codes)
    assert healthy.psnr_own > healthy.psnr_other + 3
    assert collapsed.psnr_own == pytest.approx(collapsed.psnr_other, abs=0.1)
