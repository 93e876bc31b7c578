"""The run's recorder as a Ray actor, and what a call of a dead one raises."""

from collections.abc import Sequence
from typing import Any

from pipeline.runs.outbox import Point
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import Delivered


def actor_deaths() -> tuple[type[Exception], ...]:
    """What a call raises whose actor has died, or was killed for memory."""
    import ray

    return (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)


class ActorRecorder:
    """The recorder actor, called without waiting."""

    def __init__(self, actor: Any) -> None:
        import ray

        self._ray, self._actor = ray, actor
        self._calls: list[Any] = []
        self._newest: Delivered | None = None

    def record(
        self, sender: str, first: int, points: Sequence[Point], report: MetricsReport
    ) -> Delivered | None:
        """See `Recorder`."""
        self._calls.append(self._actor.record.remote(sender, first, list(points), report))
        done, self._calls = self._ray.wait(
            self._calls, num_returns=len(self._calls), timeout=0, fetch_local=True
        )
        for call in done:
            try:
                self._newest = self._ray.get(call)
            except actor_deaths():
                continue  # Its points stay in the outbox, and in every checkpoint.
        return self._newest
