import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.explain import Quantity
from pipeline.evaluation.rows import Measured
from pipeline.explanation.mistakes import (
    Diagnosis,
    Slip,
    diagnose,
    known_slips,
    right_value,
)
from tests.support.digit_findings import evaluated, numbers_of
from tests.support.digit_models import digits_vae, sigma_of

SIGMA = sigma_of(digits_vae()).item()


def asked(quantity: Quantity, figure: float, beta: float = 1.0) -> Diagnosis:
    numbers = numbers_of()
    slips = known_slips(numbers, evaluated()[0], beta, SIGMA)
    return diagnose(quantity, figure, slips, right_value(numbers, quantity))


def kl_with(formula: Any) -> float:
    """A KL by some formula of (mean, log-variance), as a beginner's torch would sum it."""
    measured = evaluated()[0]
    mean, log_variance = torch.from_numpy(measured.means), torch.from_numpy(measured.log_variances)
    return float(formula(mean.double(), log_variance.double()).sum(1).mean())


PLANTED = {
    "sigma stands where sigma^2 belongs": lambda m, s: (
        0.5 * (m**2 + (s / 2).exp() - 1 - (s / 2).exp().log())
    ),
    "deviation is read as a log-variance": lambda m, s: (
        0.5 * (m**2 + (s / 2).exp().exp() - 1 - (s / 2).exp())
    ),
    "log-variance is read as a log-deviation": lambda m, s: (
        0.5 * (m**2 + (2 * s).exp() - 1 - 2 * s)
    ),
    "log-variance is read as a deviation": lambda m, s: 0.5 * (m**2 + s**2 - 1 - (s**2).log()),
    "averaged over dimensions": lambda m, s: 0.5 * (m**2 + s.exp() - 1 - s) / m.shape[1],
    "factor 1/2": lambda m, s: m**2 + s.exp() - 1 - s,
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_kl_with_a_planted_slip_is_named(name: str) -> None:
    assert name in asked("kl", kl_with(PLANTED[name])).slips[0].name


@pytest.mark.parametrize("name", PLANTED)
def test_an_elbo_with_that_kl_inside_is_named_too(name: str) -> None:
    elbo = numbers_of().log_likelihood - kl_with(PLANTED[name])
    names = [slip.name for slip in asked("elbo", elbo).slips]
    assert any(name in found for found in names)


def test_other_planted_slips_of_the_elbo_are_named() -> None:
    numbers = numbers_of()
    planted = {
        "sign is flipped: this is the loss": -numbers.elbo,
        "KL is left out": numbers.log_likelihood,
        "KL is added": numbers.log_likelihood + numbers.kl,
        "posterior's mean": numbers.log_likelihood_at_mean - numbers.kl,
        "log is missing": math.exp(numbers.elbo),
        "averaged over pixels": numbers.elbo / 64,
        "bits, not nats": numbers.elbo / math.log(2),
        "-D ln 256 is missing": numbers.elbo + 64 * math.log(256),
        "ln(2 pi) is missing": numbers.elbo + 32 * math.log(2 * math.pi),
    }
    for name, figure in planted.items():
        assert name in asked("elbo", figure).slips[0].name, name


def test_beta_left_in_is_named_with_its_value() -> None:
    numbers = numbers_of()
    figure = numbers.log_likelihood - 4 * numbers.kl
    assert "beta = 4 is left in" in asked("elbo", figure, beta=4.0).slips[0].name


def test_a_squared_error_is_recognised_behind_a_log_likelihood() -> None:
    measured, _ = evaluated()
    numbers = numbers_of()
    constant = math.log(SIGMA) + 0.5 * math.log(2 * math.pi) + math.log(256)
    weighted = measured.column("log_likelihood") + 64 * constant
    figure = float(weighted.mean())
    assert "all constants are missing" in asked("log_likelihood", figure).slips[0].name
    half_error = asked("log_likelihood", figure * SIGMA**2)
    assert "half the squared error" in half_error.slips[0].name
    assert numbers.log_likelihood < figure


def test_the_runs_own_number_is_right_and_a_foreign_one_is_nobodys() -> None:
    numbers = numbers_of()
    assert asked("elbo", round(numbers.elbo, 2)).right
    strange = asked("kl", 31 * numbers.kl)
    assert not strange.slips
    assert "no known slip" in strange.describe()


def test_the_literature_values_of_one_normal_are_reproduced() -> None:
    # N(1, 0.5^2): right 0.818147; sigma for sigma^2 0.596574; deviation as log-variance 0.574361.
    one = Measured(
        np.array([0]), np.zeros((1, 13)), np.zeros((3, 1)),
        np.array([[1.0]], np.float32), np.array([[math.log(0.25)]], np.float32), None,
    )  # fmt: skip
    numbers = replace(numbers_of(), kl=0.8181471805599453)
    slips = known_slips(numbers, one, 1.0, None)
    values = {slip.name: slip.value for slip in slips if slip.quantity == "kl"}
    assert values["sigma stands where sigma^2 belongs in the KL"] == pytest.approx(
        0.596574, abs=1e-6
    )
    assert values["the deviation is read as a log-variance in the KL"] == pytest.approx(
        0.574361, abs=1e-6
    )


def test_a_slip_that_is_small_beside_the_elbo_is_named_when_the_figure_is_exactly_it() -> None:
    forgotten = Slip("the KL is missing", "elbo", -65039.02, "subtract it")
    assert diagnose("elbo", -65039.0, [forgotten], -65074.68).slips == [forgotten]
    assert diagnose("elbo", -65074.7, [forgotten], -65074.68).right
    assert diagnose("elbo", -65060.0, [forgotten], -65074.68).right
