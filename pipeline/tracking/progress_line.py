"""A run's live view: its latest numbers on stderr, as a bar in a terminal and as lines in a log."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.background import Repeated
from pipeline.progress import Progress
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.goodput import productive_share
from pipeline.runs.run import Run
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import Latest

logger = logging.getLogger(__name__)

_SHOWN = ("elbo", "log_likelihood", "kl")
_SECONDS = 1.0
"""Between two looks: a bar that moves each second is alive."""
_SLOW = 1.5
"""Times the median of the ranks: below, they differ so by chance."""
_ENOUGH_SECONDS = 10.0
"""For the last look: who knows the numbers may have died, and a run's end does not wait for it."""


def numbers_of(report: MetricsReport) -> str:
    """A report's numbers in one line; what it does not hold is left out."""
    terms = {name: report.terms.get(name, math.nan) for name in _SHOWN}
    parts = [f"{name} {value:.2f}" for name, value in terms.items() if math.isfinite(value)]
    if report.images_per_second is not None:
        # Before it stands the mean rate of the steps, from which one step may be far.
        parts.append(f"last step {report.images_per_second:,.0f} images/s")
    if report.step_seconds and report.data_wait_seconds is not None:
        parts.append(f"data wait {report.data_wait_seconds / report.step_seconds:.0%}")
    if report.gpu_share is not None:
        parts.append(f"GPU {report.gpu_share:.0%} of peak")
    goodput = productive_share(report.run_seconds)
    if goodput is not None:
        parts.append(f"goodput {goodput:.0%}")
    ratio = report.slowest_rank_ratio
    if ratio is not None and ratio > _SLOW:
        parts.append(f"rank {report.slowest_rank} is slow ({ratio:.1f} times the median)")
    if report.memory_bytes is not None:
        parts.append(f"memory {report.memory_bytes / 2**30:.1f} GiB")
    return ", ".join(parts)


@contextmanager
def live_view(
    run: Run,
    name: str,
    steps: int,
    latest: Callable[[], Latest | None],
    *,
    waits_for: Callable[[], str | None] = lambda: None,
) -> Iterator[None]:
    """Shows a run's newest report on stderr while the block runs, and its workers' warnings.

    `latest` gives it, or None while whoever knows can't answer; `waits_for` names what is waited
    for at the moment, if anything.
    """
    begun, pins = newest_step(run), run.pins()
    first = _before_the_next_step(begun, is_held_out=pins is not None and bool(pins.holdout))
    told, shown = _Told(), begun

    def show() -> None:
        nonlocal shown
        waited, now = waits_for(), latest()
        report = MetricsReport() if now is None else now.report
        # A recorder that has just been made knows no step yet.
        step = shown if report.step is None else report.step
        note = waited or numbers_of(report) or first
        progress.advance(step - shown, None if now is None and not waited else note)
        shown = step
        if now is not None:
            told.tell(now)

    with Progress(name, steps, "steps", done=begun) as progress:
        often = Repeated("progress", _SECONDS, show, last=True)
        try:
            yield
        finally:
            often.close(_ENOUGH_SECONDS)
        # The steps after the last report stand in the last checkpoint.
        progress.advance(max(0, newest_step(run) - shown))


class _Told:
    """What of a run's troubles a terminal has been told."""

    def __init__(self) -> None:
        self._problem: str | None = None
        self._warnings = 0

    def tell(self, now: Latest) -> None:
        """The rest."""
        if now.problem != self._problem:
            self._problem = now.problem
            logger.warning("%s", now.problem or "MLflow can be reached again.")
        for warning in now.warnings[self._warnings :]:
            logger.warning("%s", warning)
        # A recorder that took over from a dead one knows of none.
        self._warnings = len(now.warnings)


def _before_the_next_step(begun: int, *, is_held_out: bool) -> str:
    if begun:
        return f"reads the checkpoint of step {begun}, then makes the next step"
    before = "measures the model on the hold-out before it is trained, then " if is_held_out else ""
    return f"{before}makes the first step"
