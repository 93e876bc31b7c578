"""Which of a run's seconds brought it forward: those of steps that were not made before."""

from collections.abc import Mapping
from typing import Any


class Goodput:
    """Adds up the seconds of new steps over all groups of workers, from their snapshots."""

    def __init__(self) -> None:
        self.useful_seconds = 0.0
        self._session: int | None = None
        self._highest = 0
        self._step = 0
        self._seconds = 0.0

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Takes a snapshot; the first of a group says at which step the group began."""
        if "step" not in snapshot or "session" not in snapshot:
            return
        step, seconds = snapshot["step"], snapshot["step_seconds_total"]
        if snapshot["session"] != self._session:
            first = self._session is None
            self._session, self._step, self._seconds = snapshot["session"], step, seconds
            self._highest = step if first else self._highest
            return
        made, new = step - self._step, step - max(self._step, self._highest)
        if made > 0 and new > 0:
            self.useful_seconds += (seconds - self._seconds) * new / made
        self._step, self._seconds = step, seconds
        self._highest = max(self._highest, step)
