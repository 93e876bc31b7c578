"""Twenty synthetic trainings: the right alarm, or none, and each told once."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pipeline.evaluation.alarms import Look, last_word, new_alarms

IMAGES = 200
DIFFICULTY = np.random.default_rng(0).normal(0, 40, IMAGES)
"""What makes an image hard is the same at each look: its spread is far above any change here."""


def history(
    holdout: Sequence[float],
    training: Sequence[float] | None = None,
    kl: Sequence[float] | None = None,
    noise: float = 2.0,
    seed: int = 0,
) -> list[Look]:
    """Looks every 100 steps with these means; `noise`: of an image's own change."""
    draws = np.random.default_rng(seed)
    looks = []
    for number, mean in enumerate(holdout):
        own = draws.normal(0, noise, IMAGES)
        code = 5.0 if kl is None else kl[number]
        own = mean + DIFFICULTY - DIFFICULTY.mean() + own - own.mean()
        known = None if training is None or number == 0 else training[number]
        looks.append(Look(100 * number, code, 0.0 if code < 0.01 else 8.0, own, known))
    return looks


def rising(count: int, low: float = -400, high: float = -300) -> list[float]:
    return [low + (high - low) * (1 - math.exp(-place)) for place in range(count)]


UP = rising(10, -400, -250)
OVERFIT = [-400, -330, -310, -305, -312, -325, -345, -370, -390, -420]
NAN = float("nan")

HISTORIES: dict[str, tuple[list[Look], int, set[str]]] = {
    "rises": (history(rising(10), UP), 0, set()),
    "rises with noisy batches": (
        history(rising(10), [v + 8 * (-1) ** i for i, v in enumerate(UP)]), 0, set()
    ),
    "overfits": (history(OVERFIT, UP), 0, {"overfitting"}),
    "overfits by little, which pairs show": (
        history([-400, -330, -300, -301.5, -302, -302.5], UP[:6]), 0, {"overfitting"}
    ),
    "overfits below the untrained model": (
        history([-400, -380, -405, -430, -460], UP[:5]), 0, {"overfitting"}
    ),
    "worse than untrained from the start": (
        history([-400, -410, -420, -430], UP[:4]), 0, {"overfitting"}
    ),
    "one bad look and back": (history([-400, -330, -310, -318, -305, -300], UP[:6]), 0, set()),
    "plateau": (history([-400, -320, *[-300] * 8], UP), 0, set()),
    "plateau with noise": (
        history([-400, -320, -300, -300.2, -299.9, -300.1, -300.3, -300.0], UP[:8]), 0, set()
    ),
    "falls by 2.5 of 62,256 nats with an error as large": (
        history([-62256.6, -62259.1, -62257.0], [NAN, -62258, -62250], noise=20), 0, set()
    ),
    "diverges": (
        history([-400, -320, -300, -900], [NAN, -310, -290, -950]), 0, {"divergence"}
    ),
    "diverges to no number": (history([-400, -320, NAN], [NAN, -310, NAN]), 0, {"divergence"}),
    "diverges at once": (
        history([-400, -5000, -9000], [NAN, -6000, -9500]), 0, {"divergence"}
    ),
    "climbs back after a spike of both": (
        history([-400, -320, -301, -299, -298], [NAN, -310, -320, -290, -280]), 0, set()
    ),
    "collapses": (
        history(rising(6), UP[:6], kl=[0.0, 3.0, 1.0, 0.05, 0.003, 0.001]), 0, {"collapse"}
    ),
    "starts collapsed and stays so": (
        history(rising(6), UP[:6], kl=[0.0] * 6), 0, {"collapse"}
    ),
    "collapsed at the first look alone": (
        history(rising(6), UP[:6], kl=[0.0, 0.0, 2.0, 4.0, 5.0, 5.0]), 0, set()
    ),
    "collapsed within the warm-up": (
        history(rising(6), UP[:6], kl=[0.0, 0.0, 0.0, 0.001, 4.0, 5.0]), 350, set()
    ),
    "a warm-up of the KL lets the hold-out fall": (
        history([-400, -300, -340, -360, -320, -295, -290], UP[:7]), 450, set()
    ),
    "overfits and collapses": (
        history(OVERFIT, UP, kl=[0.0, 3, 2, 1, 0.5, 0.05, 0.01, 0.003, 0.001, 0.001]), 0,
        {"overfitting", "collapse"},
    ),
}  # fmt: skip


def test_there_are_twenty_histories() -> None:
    assert len(HISTORIES) == 20


@pytest.mark.parametrize("name", HISTORIES)
def test_the_right_alarm_or_none_and_each_once(name: str) -> None:
    looks, warmup, expected = HISTORIES[name]
    told = [alarm for end in range(1, len(looks) + 1) for alarm in new_alarms(looks[:end], warmup)]
    assert sorted(alarm.illness for alarm in told) == sorted(expected)
    assert all("--" in alarm.words for alarm in told)


def test_one_held_out_image_is_no_collapse() -> None:
    looks = [Look(100 * n, 5.0, 0.0, np.array([-300.0 + n]), -300.0 + n) for n in range(6)]
    assert [new_alarms(looks[:end], 0) for end in range(1, 7)] == [[]] * 6


CHANCE: Callable[[int], list[Look]] = lambda seed: history(  # noqa: E731
    [-400, -320, *[-300 + 0.1 * math.sin(7 * seed + i) for i in range(8)]], UP, seed=seed
)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_raises_no_alarm(seed: int) -> None:
    looks = CHANCE(seed)
    assert [new_alarms(looks[:end], 0) for end in range(1, len(looks) + 1)] == [[]] * len(looks)


def test_the_last_word_says_below_what_a_run_ended_and_what_is_kept() -> None:
    words = last_word(history(OVERFIT, UP), 300)
    assert words is not None
    assert "ends below what it began with" in words
    assert "it has overfitted" in words
    assert "the weights of step 300 are kept" in words
    partly = last_word(history(OVERFIT[:7], UP[:7]), 300)
    assert partly is not None
    assert "best at step 300 (-305.00 nats, at the end -345.00)" in partly
    assert last_word(history(rising(6), UP[:6]), 500) is None
    diverged = last_word(history([-400, -320, -900], [NAN, -310, -950]), 100)
    assert diverged is not None
    assert "diverged" in diverged
