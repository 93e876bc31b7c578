"""Metric points on their way to MLflow: nothing is forgotten before it is known to have arrived."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """All metrics of one step, with the time (ms since 1970) at which they were first made."""

    step: int
    time_ms: int
    values: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain data, as kept in checkpoints and in the run's storage."""
        return {"step": self.step, "time_ms": self.time_ms, "values": dict(self.values)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Point":
        """The inverse of `to_json`."""
        return Point(data["step"], data["time_ms"], data["values"])


class Outbox:
    """Points made and not yet acknowledged, in the order of their steps.

    They travel in every checkpoint, so that a crash loses none: what was made after the
    checkpoint is made again by replay.
    """

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._points = deque(points)
        self._handed_over = 0

    def add(self, point: Point) -> None:
        """Appends a point."""
        self._points.append(point)

    def take_new(self) -> list[Point]:
        """The points that were not handed over before; they stay here until acknowledged."""
        new = list(self._points)[self._handed_over :]
        self._handed_over = len(self._points)
        return new

    def acknowledge(self, step: int) -> None:
        """Forgets all points up to `step`: they have arrived."""
        while self._points and self._points[0].step <= step:
            self._points.popleft()
            self._handed_over = max(0, self._handed_over - 1)

    def pending(self) -> list[Point]:
        """All points that are not yet acknowledged."""
        return list(self._points)
