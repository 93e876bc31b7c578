import math

import pytest

from pipeline.config import OptimizerConfig
from pipeline.training.schedule import learning_rate


def test_warm_up_reaches_the_peak_at_its_last_step_and_grows_linearly() -> None:
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=10)
    rates = [learning_rate(config, step, 100) for step in range(1, 11)]
    assert rates == pytest.approx([0.05 * step for step in range(1, 11)])


def test_cosine_is_half_the_peak_midway_and_zero_at_the_last_step() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, schedule="cosine")
    assert learning_rate(config, 50, 100) == pytest.approx(0.5)
    assert learning_rate(config, 25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert learning_rate(config, 100, 100) == pytest.approx(0.0, abs=1e-15)


def test_a_constant_schedule_never_leaves_the_peak() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=3, schedule="constant")
    assert {learning_rate(config, step, 100) for step in range(3, 101)} == {1.0}
