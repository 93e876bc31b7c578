"""Which knob brings most, on a machine whose own pace changes from one look to the next.

Each knob's training is timed between two looks at the training as asked, and set against these two
alone: what the machine does before and after them is no gain.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from pipeline.pace.probes import Subject
from pipeline.pace.trials import Trial

_WORTH = 1.05
"""A smaller gain is within what two looks at the same thing differ by on a quiet machine."""
_STEADY = 0.15
"""Looks that differ by no more than a busy desktop makes them: the trial between them counts."""
_ATTEMPTS = 3
"""At each trial: on a machine that is never steady the bench still ends."""


@dataclass(frozen=True)
class Tried:
    """A knob's other value, as a flag, and images per second with it.

    `gain`: over the mean of the two looks beside it; `at_least`: over the faster of them, which is
    below `gain` where the machine's pace changed meanwhile. `changes_training`: as of the trial.
    """

    flag: str
    note: str
    changes_training: bool
    pace: float
    gain: float
    at_least: float


@dataclass(frozen=True)
class Ranking:
    """Looks at the training as asked, in images per second, and the knobs, largest gain first."""

    looks: Sequence[float]
    tried: Sequence[Tried]

    @property
    def drift(self) -> float:
        """The largest share by which two looks at the training, one after the other, differed."""
        return max((_difference(a, b) for a, b in pairwise(self.looks)), default=0.0)

    def best(self, *, changes_training: bool) -> Tried | None:
        """The knob of a kind that brings most; None where none surely brings anything."""
        worth = (
            tried
            for tried in self.tried
            if tried.changes_training == changes_training and tried.at_least >= _WORTH
        )
        return next(worth, None)


def rank(subject: Subject, trials: Iterable[Trial], pace: Callable[[Subject], float]) -> Ranking:
    """Times each trial by `pace`, which gives images per second, between two looks at `subject`.

    Where these two differ, the machine did something else meanwhile: the trial is timed again, and
    the attempt counts whose looks agree best.
    """
    looks, tried = [pace(subject)], list[Tried]()
    for trial in trials:
        attempts = list[_Attempt]()
        while len(attempts) < _ATTEMPTS:
            found = pace(trial.subject)
            looks.append(pace(subject))
            attempts.append(_Attempt(found, *looks[-2:]))
            if attempts[-1].unsteady <= _STEADY:
                break
        best = min(attempts, key=lambda attempt: attempt.unsteady)
        tried.append(
            Tried(
                flag=trial.flag,
                note=trial.note,
                changes_training=trial.changes_training,
                pace=best.pace,
                gain=best.pace / ((best.before + best.after) / 2),
                at_least=best.pace / max(best.before, best.after),
            )
        )
    return Ranking(looks, sorted(tried, key=lambda each: -each.gain))


class _Attempt(NamedTuple):
    """A trial's pace, and the training's before and after it."""

    pace: float
    before: float
    after: float

    @property
    def unsteady(self) -> float:
        """The share by which the looks differ."""
        return _difference(self.before, self.after)


def _difference(first: float, second: float) -> float:
    return abs(first - second) / ((first + second) / 2)
