"""No flipped bit of what is trusted is accepted as other content, and none ends the process."""

import logging
from pathlib import Path

import pytest

from tests.damage.bits import Flipped, flip, parsed_files, table
from tests.damage.damaged_world import World

STRIDE = 499
"""In `make test`; a prime, so that all eight bits of a byte come up. `make chaos` takes each."""


def check(found: list[Flipped]) -> None:
    print("\n" + table(found))
    assert [said for one in found for said in one.bad] == []
    assert len({one.kind for one in found}) == 18


def flipped(world: World, stride: int) -> list[Flipped]:
    logging.disable(logging.CRITICAL)  # an older pointer is followed, with a warning
    try:
        return [flip(parsed, stride) for parsed in parsed_files(world)]
    finally:
        logging.disable(logging.NOTSET)


def test_a_sample_of_all_bits_is_refused_or_changes_nothing(world: World) -> None:
    check(flipped(world, STRIDE))


@pytest.mark.chaos
def test_every_single_bit_is_refused_or_changes_nothing(world: World) -> None:
    found = flipped(world, 1)
    check(found)
    Path("tests/damage/BITS.md").write_text(f"{_TITLE}\n{table(found)}\n")


_TITLE = """# What single flipped bits come to

Made by `make chaos` (tests/damage/test_bits.py): each bit of each file that readers trust, of a
small dataset, run and store, flipped once and read by its parser. `the same`: the bit stands where
nothing is read from.
"""
