"""No damage to a file is read as something else, ends in a traceback, or is waited on for ever."""

import logging
import random
from pathlib import Path

import pytest

from tests.damage.damaged_world import World
from tests.damage.matrix import Judged, all_cases, expected, judge, table

BAD = ("SILENT", "CRASH", "DEATH", "HANG")
IN_MAKE_TEST = 600
"""Of them in `make test`, 0.15 s each on a busy machine; `make chaos` takes all."""
FLIPS = 70
"""Bits of each file, so that there are more than 6,000 cases in all."""


def judged(world: World, most: int | None, flips: int) -> list[Judged]:
    logging.disable(logging.NOTSET)
    whole = expected(world)
    cases = all_cases(world, flips)
    random.Random(0).shuffle(cases)
    return [judge(case, world, whole) for case in cases[:most]]


def check(found: list[Judged]) -> None:
    print("\n" + table(found))
    bad = [f"{one.verdict} by {one.reader}: {one.case}\n{one.said}" for one in found
           if one.verdict in BAD]  # fmt: skip
    assert bad == []


def test_a_sample_of_all_damages_is_told_or_harmless(world: World) -> None:
    check(judged(world, IN_MAKE_TEST, 20))


@pytest.mark.chaos
def test_every_damage_is_told_or_harmless(world: World) -> None:
    found = judged(world, None, FLIPS)
    assert len(found) >= 6000
    check(found)
    Path("tests/damage/README.md").write_text(f"{_TITLE}\n{table(found)}\n")


_TITLE = """# What damages come to

Made by `make chaos` (tests/damage/test_matrix.py): each damage to each file of a small dataset,
run and store, read by all that reads it. `told`: a sample is masked, or a warning says what is
skipped. `the same`: nothing that is read depends on it; how much of that `jobs.verify` notices
stands in the last column.
"""
