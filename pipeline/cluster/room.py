"""What a start waits for before its workers begin, told each minute where the cluster has no room.

After Ray has lost workers it waits the same way for room for their successors.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import StorageError
from pipeline.runs.run import Run, Start

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 5.0
"""Between two looks at storage and at Ray's tables; the live view asks each second."""
_SAY_SECONDS = 60.0
"""As often as a log gets a line of progress."""


@dataclass
class Wait:
    """Of the start `start` for `workers` workers, each of which needs `each` (CPU, GPU)."""

    run: Run
    start: Start
    workers: int
    each: Mapping[str, float]
    _begun: bool = False
    _pending: bool = False
    _looked: float = 0.0
    _since: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def note(self) -> str | None:
        """What is waited for now; None while workers work. Says it in the log each minute."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS or not self._looked:
            self._looked = now
            self._look()
        if self._begun and not self._pending:
            self._since = self._said = now
            return None
        if now - self._said >= _SAY_SECONDS:
            self._said = now
            logger.warning("%s", self._words(now - self._since))
        if self._pending:
            return f"waits for room: {self._asked()}; {_there(self.each)}"
        return f"{self._counted()} start"

    def _look(self) -> None:
        try:
            newest = self.run.newest_start()
        except StorageError:
            return  # The workers need it, and say so.
        self._begun = self._begun or newest.number > self.start.number or newest.restart > 0
        self._pending = _reservation_is_pending()

    def _words(self, seconds: float) -> str:
        asked = f"{self._asked()}; {_there(self.each)}"
        if not self._pending:
            return f"no worker has begun for {seconds:.0f} s: {asked}"
        words = f"the cluster has no room for the workers yet: {asked}. They start once it has."
        if any(self.workers * each > _resources()[0].get(n, 0) for n, each in self.each.items()):
            words += " In all it has less than that: give fewer `--workers N`, or add nodes."
        return words

    def _asked(self) -> str:
        return (
            f"asked are {self._counted()}"
            + (" with " if self.workers == 1 else ", each ")
            + (_listed(self.each))
        )

    def _counted(self) -> str:
        return "1 worker" if self.workers == 1 else f"{self.workers} workers"


def _there(names: Mapping[str, float]) -> str:
    total, free = _resources()
    parts = [
        f"{total.get(name, 0):g} {_unit(name, total.get(name, 0))}, "
        f"{free.get(name, 0):g} of them not taken"
        for name in names
    ]
    return f"the cluster has {' and '.join(parts)}"


def _listed(amounts: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {_unit(name, amount)}" for name, amount in amounts.items())


def _unit(name: str, amount: float) -> str:
    return name if amount == 1 else f"{name}s"


def _resources() -> tuple[Mapping[str, float], Mapping[str, float]]:
    import ray

    return ray.cluster_resources(), ray.available_resources()


def _reservation_is_pending() -> bool:
    """Whether cores that Ray is to keep for this driver's workers are not yet there."""
    import ray
    from ray.util.placement_group import placement_group_table

    job = ray.get_runtime_context().get_job_id()
    # An id ends with that of the job which made it.
    groups = [found for name, found in placement_group_table().items() if name.endswith(job)]
    return any(found["state"] in ("PENDING", "RESCHEDULING") for found in groups)
