"""A run's live view: its latest numbers on stderr, as a bar in a terminal and as lines in a log."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.config import TrainConfig
from pipeline.progress import Progress
from pipeline.runs.checkpoint import newest_step
from pipeline.runs.run import Run
from pipeline.training.goodput import productive_share

logger = logging.getLogger(__name__)

_SHOWN = ("elbo", "log_likelihood", "kl")
_SECONDS = 1.0
_SLOW = 1.5
Latest = Callable[[], dict[str, Any]]


def numbers_of(snapshot: Mapping[str, Any]) -> str:
    """A snapshot's numbers in one line; what it does not hold is left out."""
    terms = snapshot.get("terms", {})
    parts = [f"{name} {terms[name]:.2f}" for name in _SHOWN if name in terms]
    if "images_per_second" in snapshot:
        parts.append(f"{snapshot['images_per_second']:,.0f} images/s")
    if snapshot.get("step_seconds_total"):
        share = snapshot["data_wait_seconds_total"] / snapshot["step_seconds_total"]
        parts.append(f"data wait {share:.0%}")
    if snapshot.get("gpu_share") is not None:
        parts.append(f"GPU {snapshot['gpu_share']:.0%} of peak")
    goodput = productive_share(snapshot.get("run_seconds_total", {}))
    if goodput is not None:
        parts.append(f"goodput {goodput:.0%}")
    if snapshot.get("slowest_rank_ratio", 1.0) > _SLOW:
        ratio = snapshot["slowest_rank_ratio"]
        parts.append(f"rank {snapshot['slowest_rank']} is slow ({ratio:.1f} times the median)")
    if "memory_bytes" in snapshot:
        parts.append(f"memory {snapshot['memory_bytes'] / 2**30:.1f} GiB")
    return ", ".join(parts)


@contextmanager
def live_view(config: TrainConfig, run: Run, latest: Latest) -> Iterator[None]:
    """Shows the newest snapshot, as `latest` returns it, on stderr while the block runs."""
    ended = threading.Event()
    begun = newest_step(run)

    def show() -> None:
        problem, shown, over = None, begun, False
        with Progress(config.run, config.steps, "steps", done=begun) as progress:
            while not over:
                over = ended.wait(_SECONDS)
                snapshot = latest()
                # A recorder that has just been made knows no step yet.
                step = snapshot.get("step", shown)
                progress.advance(step - shown, numbers_of(snapshot))
                shown = step
                if snapshot.get("problem") != problem:
                    problem = snapshot.get("problem")
                    logger.warning("%s", problem or "MLflow can be reached again.")

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10)
