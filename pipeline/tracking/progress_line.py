"""A run's live view: its latest numbers on stderr, as a bar in a terminal and as lines in a log."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.progress import Progress
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.goodput import productive_share
from pipeline.runs.run import Run
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import Latest

logger = logging.getLogger(__name__)

_SHOWN = ("elbo", "log_likelihood", "kl")
_SECONDS = 1.0
_SLOW = 1.5


def numbers_of(report: MetricsReport) -> str:
    """A report's numbers in one line; what it does not hold is left out."""
    terms = {name: report.terms.get(name, math.nan) for name in _SHOWN}
    parts = [f"{name} {value:.2f}" for name, value in terms.items() if math.isfinite(value)]
    if report.images_per_second is not None:
        parts.append(f"{report.images_per_second:,.0f} images/s")
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
    run: Run, name: str, steps: int, latest: Callable[[], Latest | None]
) -> Iterator[None]:
    """Shows a run's newest report on stderr while the block runs.

    `latest` gives it, or None while whoever knows can't answer.
    """
    ended = threading.Event()
    begun = newest_step(run)

    def show() -> None:
        problem, shown, over = None, begun, False
        with Progress(name, steps, "steps", done=begun) as progress:
            while not over:
                over = ended.wait(_SECONDS)
                now = latest()
                if now is None:
                    continue
                # A recorder that has just been made knows no step yet.
                step = shown if now.report.step is None else now.report.step
                progress.advance(step - shown, numbers_of(now.report))
                shown = step
                if now.problem != problem:
                    problem = now.problem
                    logger.warning("%s", problem or "MLflow can be reached again.")

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
