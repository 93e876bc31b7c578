"""Metric points on their way to MLflow: nothing is forgotten before it is known to have arrived."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

Series = Literal["elbo", "holdout_elbo"]
"""What a point measures, by the metric that each of its points has: training or the hold-out."""
SERIES: tuple[Series, ...] = get_args(Series)


@dataclass(frozen=True)
class Point:
    """All metrics of one step, with the time (ms since 1970) at which they were first made."""

    series: Series
    step: int
    time_ms: int
    values: Mapping[str, float]


class Outbox:
    """Points made and not yet acknowledged, in the order in which they were made.

    They travel in every checkpoint, so that a crash loses none: what was made after the
    checkpoint is made again by replay.
    """

    def __init__(self) -> None:
        self._points: deque[Point] = deque()
        self._handed_over = 0

    def add(self, point: Point) -> None:
        """Appends a point."""
        self._points.append(point)

    def take_over(self, points: Iterable[Point]) -> None:
        """Appends the points that waited when a checkpoint was made."""
        self._points.extend(points)

    def hand_over(self) -> list[Point]:
        """The points not handed over before; they stay here until they are acknowledged."""
        new = list(islice(self._points, self._handed_over, None))
        self._handed_over = len(self._points)
        return new

    def take_back(self) -> None:
        """Whoever had the points is gone: the next `hand_over` gives all of them again."""
        self._handed_over = 0

    def acknowledge(self, count: int) -> None:
        """Forgets the oldest `count` points: they have arrived."""
        for _ in range(count):
            self._points.popleft()
        self._handed_over -= count

    def pending(self) -> list[Point]:
        """All points that are not yet acknowledged."""
        return list(self._points)
