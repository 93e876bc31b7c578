import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.int8 import restored, to_int8


@given(st.integers(0, 1000), st.floats(1e-3, 1e4), st.floats(-1e4, 1e4))
def test_no_value_is_off_by_more_than_half_a_step_and_the_ends_are_kept(
    seed: int, scale: float, offset: float
) -> None:
    dice = np.random.default_rng(seed)
    values = (dice.standard_normal((3, 2, 4, 5)) * scale + offset).astype(np.float32)
    small = to_int8(values)
    span = (values.max((2, 3)) - values.min((2, 3))).astype(np.float64)
    error = np.abs(small.values.astype(np.float64) - values).max((2, 3))
    assert (error <= span / 254 / 2 * 1.001 + 1e-6 * np.abs(values).max()).all()
    assert small.numbers.dtype == np.int8
    assert small.scales.shape == (3, 2, 2)
    np.testing.assert_array_equal(restored(small.numbers, small.scales), small.values)


def test_a_channel_without_contrast_is_kept_exactly() -> None:
    values = np.full((1, 2, 3, 3), 7.25, np.float32)
    values[0, 1] = np.linspace(-1, 1, 9).reshape(3, 3)
    np.testing.assert_array_equal(to_int8(values).values[0, 0], values[0, 0])


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_no_special_case(rows: int) -> None:
    assert to_int8(np.zeros((rows, 2, 3, 3), np.float32)).values.shape == (rows, 2, 3, 3)
