"""Why a run should stop before its last step: started again elsewhere, told to, or drained."""

import threading
from collections.abc import Callable

from pipeline import storage
from pipeline.background import Repeated
from pipeline.errors import StorageError
from pipeline.runs.reason import StopReason
from pipeline.runs.run import Run, Start


class StopSignal:
    """Looks at the run's folder every few seconds, in a thread; rank 0's is asked.

    `requested` becomes true when a newer start owns the run, a `STOP` object lies in its folder,
    or `drained` says that a node is being taken away; the loop reads it at every step and tells
    all ranks at the same one.
    """

    def __init__(
        self, run: Run, start: Start, drained: Callable[[], bool], seconds: float = 3.0
    ) -> None:
        self._run, self._start, self._drained = run, start, drained
        self._requested = threading.Event()
        self._looks = Repeated("stop-signal", seconds, self._look)

    @property
    def requested(self) -> bool:
        """Whether the loop should stop at its next step."""
        return self._requested.is_set() or self._drained()

    def reason(self) -> StopReason:
        """Why the loop should stop, by what the run's folder says now."""
        if self._run.newest_start() > self._start:
            return "superseded"
        told = storage.exists(self._run.path("STOP")) or not self._drained()
        return "stopped" if told else "drained"

    def close(self) -> None:
        """Ends the thread."""
        self._looks.close()

    def _look(self) -> None:
        try:
            superseded = self._run.newest_start() > self._start
            if superseded or storage.exists(self._run.path("STOP")):
                self._requested.set()
        except StorageError:
            return  # It must not stop training: the checkpoint's write will tell.
