from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.latents.statistics import ChannelStatistics, empty, measure


def latents(seed: int, rows: int, offset: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, 3, 2, 5)) + offset).astype(np.float16)


def assert_same(found: ChannelStatistics, values: np.ndarray, log_variance: np.ndarray) -> None:
    """Against numpy in float64 over all rows at once."""
    wide = values.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean((0, 2, 3)), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.std, wide.std((0, 2, 3)), rtol=1e-10)
    within = np.exp(log_variance.astype(np.float64)).mean((0, 2, 3))
    total = np.sqrt(wide.var((0, 2, 3)) + within)
    assert found.sample_std is not None
    np.testing.assert_allclose(found.sample_std, total, rtol=1e-10)
    assert found.rows == len(values)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(-50, 50))
@settings(max_examples=60, deadline=None)
def test_merged_in_any_pieces_mean_and_deviation_are_those_of_numpy(
    sizes: Any, offset: Any
) -> None:
    values, log_variance = latents(0, sum(sizes), offset), latents(1, sum(sizes))
    found, start = empty(3, with_variance=True), 0
    for size in sizes:
        part = slice(start, start + size)
        found = found.merge(measure(values[part], log_variance[part]))
        start += size
    assert_same(found, values, log_variance)


@given(st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_rows_taken_away_leave_the_statistics_of_the_others(kept: Any, gone: Any) -> None:
    values, log_variance = latents(0, kept + gone, 3), latents(1, kept + gone)
    whole, part = measure(values, log_variance), measure(values[kept:], log_variance[kept:])
    assert_same(whole.without(part), values[:kept], log_variance[:kept])


def test_all_rows_taken_away_leave_nothing_and_more_than_all_is_refused() -> None:
    one, two = measure(latents(0, 1)), measure(latents(0, 2))
    assert two.without(two) == empty(3, with_variance=False)
    with pytest.raises(ValueError, match="2 rows from 1"):
        one.without(two)


def test_without_log_variance_there_is_no_deviation_of_samples() -> None:
    assert measure(latents(0, 4)).sample_std is None


def test_the_layout_in_memory_changes_no_bit() -> None:
    values, log_variance = latents(0, 9), latents(1, 9)
    last = [np.moveaxis(np.moveaxis(v, 1, -1).copy(), -1, 1) for v in (values, log_variance)]
    assert last[0].strides != values.strides
    assert measure(*last) == measure(values, log_variance)


def test_json_keeps_every_bit() -> None:
    found = measure(latents(0, 7), latents(1, 7))
    assert ChannelStatistics.from_json(found.to_json()) == found
