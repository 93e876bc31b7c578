from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.latents.positions import Positions

SHARDS = st.integers(1, 70).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)), st.sets(st.integers(0, n - 1)))
)


@given(SHARDS)
def test_what_is_held_and_left_is_what_sets_say(world: Any) -> None:
    samples, held, gone = world
    positions = Positions.of(samples, held)
    assert positions.array.tolist() == sorted(held)
    assert len(positions) == len(held)
    assert (positions.bits is None) == (len(held) == samples)
    left = sorted(held - gone)
    kept = positions.without(sorted(held & gone))
    assert len(kept) == len(left)
    ranks = kept.ranks(np.arange(len(left)))
    assert positions.array[ranks].tolist() == left
    assert positions.rank(np.array(left, dtype=np.int64)).tolist() == ranks.tolist()
    if held:
        assert kept.has(np.array(sorted(held))).tolist() == [p not in gone for p in sorted(held)]
    chosen = [rank for rank in range(len(held)) if rank % 2]
    wanted = [p for p in sorted(held)[1::2] if p not in gone]
    both = kept.intersected(np.array(chosen, dtype=np.int64))
    assert positions.array[both.ranks(np.arange(len(both)))].tolist() == wanted


@given(SHARDS)
def test_written_and_read_they_are_the_same(world: Any) -> None:
    samples, held, _ = world
    positions = Positions.of(samples, held)
    assert Positions(samples, positions.bits).checked("x") == positions


@pytest.mark.parametrize("bits", ["", "//8=", "/w==", "A===", "gA==", "not base64 at all"])
def test_bits_that_nobody_would_have_written_are_refused(bits: str) -> None:
    """Too few or too many, a bit behind the end, or all of them, which is said without."""
    with pytest.raises(StoreError, match="x: its positions are"):
        Positions(7, bits).checked("x")
