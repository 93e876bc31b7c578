"""When and why the loop stops: decided here alone, alike on all ranks, and told by one word."""

from dataclasses import dataclass

from pipeline.runs.reason import Reason, StopReason
from pipeline.runs.run import Run, Start
from pipeline.runs.stop import StopSignal
from pipeline.training.holdout import HoldOut
from pipeline.training.step import StepReport
from pipeline.training.world import World

_ASKED: tuple[StopReason, ...] = ("stopped", "superseded", "drained")
"""Sent between ranks by their place in this list."""


@dataclass(frozen=True)
class Stopping:
    """A run of `steps` steps, whose hold-out or whose `signal` may end it before.

    Every rank calls these methods at the same points, for they hold messages between ranks.
    """

    steps: int
    run: Run
    start: Start
    world: World
    holdout: HoldOut
    signal: StopSignal

    @property
    def is_wished(self) -> bool:
        """Rank 0's wish, of which all ranks learn in the next step's report."""
        return self.world.rank == 0 and self.signal.requested

    def at_start(self, step: int) -> Reason | None:
        """Why no step is to be made after `step` ones of earlier starts; None: there are more."""
        if self._is_complete(step):
            return "done"
        # Workers may take minutes to get here: whoever said stop meanwhile waits for no step.
        return self._asked() if self.world.broadcast(int(self.is_wished)) else None

    def asked(self, report: StepReport) -> StopReason | None:
        """Why this start was asked to end with that step; None: it was not."""
        return self._asked() if report.stop_requested else None

    def may_look(self, step: int, asked: StopReason | None) -> bool:
        """Whether the hold-out is due, by a start that may still write history and best weights."""
        return asked != "superseded" and self.holdout.is_due(step, last=step == self.steps)

    def after(self, step: int, asked: StopReason | None) -> Reason | None:
        """Why that step was the last one of this start; None: the run goes on."""
        # Whoever was replaced writes nothing more, the last step's model neither.
        if asked != "superseded" and self._is_complete(step):
            return "done"
        return asked

    def at_end(self, reason: Reason) -> Reason:
        """The last word, before the model is written: another start may own the run by now."""
        if reason != "done":
            return reason
        is_replaced = self.world.broadcast(int(self.run.newest_start() > self.start))
        return "superseded" if is_replaced else "done"

    def _is_complete(self, step: int) -> bool:
        return step >= self.steps or self.holdout.has_converged

    def _asked(self) -> StopReason:
        # Rank 0 alone was asked: only its answer is the truth.
        mine = _ASKED.index(self.signal.reason()) if self.world.rank == 0 else 0
        return _ASKED[self.world.broadcast(mine)]
