"""The run's one recorder: it owns `/metrics` and MLflow, and training never waits for either.

It lives in a Ray actor on the driver's node, or, without Ray, in the training process itself.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.errors import StorageError, first_line
from pipeline.masking import masked
from pipeline.runs.outbox import Point
from pipeline.runs.reason import Reason
from pipeline.tracking.endpoint import Endpoint, discovery, forget
from pipeline.tracking.metric_table import TRAINING, MetricsReport
from pipeline.tracking.mlflow_run import TrackedRun
from pipeline.tracking.version import version

SEND_SECONDS = 2.0
"""Between two deliveries: the points of two seconds go in one request."""
RETRY_SECONDS = 10.0
"""After a failure: MLflow's client has tried for a while itself, and a restart takes longer."""

_JOIN_SECONDS = 30.0
"""For a request that is under way at the end: MLflow's client tries three times, 10 s each."""
_MOST_WARNINGS = 200
"""Of the workers', that a terminal is told of: by then a reader has seen the pattern, and a rank
that warns at every step would bury the progress. All of them stand in RUN/logs."""


@dataclass(frozen=True)
class Delivered:
    """How many of a sender's points have arrived in MLflow, as this recorder counts.

    `missed`: points before those were given to a recorder that died; all must be given again.
    """

    sender: str
    points: int
    missed: bool


@dataclass(frozen=True)
class Latest:
    """The newest report of a run, and the problem that there is with MLflow, if any.

    `warnings`: those of the workers so far, in order, for whoever can't read their stderr.
    """

    report: MetricsReport
    problem: str | None
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Settled:
    """How a run's tracking ended: MLflow's id of the run, and the points that it has not got.

    Without an id MLflow was never reached.
    """

    run_id: str | None
    left: Sequence[Point]


@dataclass(frozen=True)
class RecorderSettings:
    """A run for its recorder: its folder and name, where it is tracked, and MLflow's parameters."""

    run_url: str
    name: str
    tracking: TrackingConfig
    mlflow_uri: str
    params: Mapping[str, str]


class RunRecorder:
    """Takes points and reports at any time; delivers points to MLflow in a thread, in order."""

    def __init__(self, settings: RecorderSettings) -> None:
        tracking, uri = settings.tracking, settings.mlflow_uri
        run_url, name = settings.run_url, settings.name
        self._connect = partial(
            TrackedRun, uri, tracking.experiment, name, run_url, params=settings.params
        )
        self._uri = uri
        self._tracked: TrackedRun | None = None
        self._queue: deque[tuple[str, Point]] = deque()
        self._sender = ""
        self._taken = self._delivered = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._closed = False
        self._report = MetricsReport()
        self._problem: str | None = None
        self._fatal_error: str | None = None
        self._warnings: dict[str, str] = {}
        self.metrics = Endpoint(TRAINING, "run", name, version())
        self._address = self.metrics.serve(tracking.metrics_host, tracking.metrics_port)
        self._discovery = storage.join(run_url, "metrics.json")
        self._named = discovery(self._address, "run", name)
        with contextlib.suppress(StorageError):
            storage.publish(self._discovery, self._named)
        self._thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)
        self._thread.start()

    def address(self) -> str:
        """HOST:PORT that serves `/metrics`."""
        return self._address

    def record(
        self, sender: str, first: int, points: Sequence[Point], report: MetricsReport
    ) -> Delivered:
        """Takes new points; returns how many points of this sender have been delivered so far.

        A sender is one worker group with one recorder: its points count from its first call, and
        `first` is the number of the first one here. Where it is not the next, those before it were
        given to a recorder that died: none is taken, so that none overtakes them.
        """
        with self._lock:
            if sender != self._sender:
                self._sender, self._taken, self._delivered = sender, 0, 0
            if first == self._taken:
                self._queue.extend((sender, point) for point in points)
                self._taken += len(points)
            delivered = Delivered(sender, self._delivered, missed=first > self._taken)
            unsent = len(self._queue)
        self._report = replace(
            report, unsent_points=unsent, tracking_failing=self._problem is not None
        )
        self.metrics.update(self._report, report.restart)
        return delivered

    def latest(self) -> Latest:
        """What is known now, for the live view."""
        return Latest(self._report, self._problem, tuple(self._warnings.values()))

    def warn(self, rank: int, message: str) -> None:
        """Takes a worker's warning; the same one of other ranks is the same warning."""
        if message not in self._warnings and len(self._warnings) < _MOST_WARNINGS:
            self._warnings[message] = f"rank {rank}: {message}"

    def set_fatal_error(self, message: str) -> None:
        """Remembers an error that restarting the workers can't mend."""
        self._fatal_error = self._fatal_error or message

    def fatal_error(self) -> str | None:
        """The first error that was set, if any."""
        return self._fatal_error

    def settle(self, points: Sequence[Point], report: MetricsReport, seconds: float) -> list[Point]:
        """The run's last points, some perhaps delivered before; returns what can't be delivered."""
        self.record("end", 0, points, report)
        return self.flush(seconds)

    def flush(self, seconds: float) -> list[Point]:
        """Waits until all is delivered or the time is over; returns what is not."""
        deadline = time.monotonic() + seconds
        self._wake.set()
        with self._idle:
            while self._queue and time.monotonic() < deadline:
                self._idle.wait(timeout=0.2)
            return [point for _, point in self._queue]

    def run_id(self) -> str | None:
        """The MLflow run's id, once MLflow has been reached."""
        return self._tracked.run_id if self._tracked else None

    def finish(self, status: str | None) -> str | None:
        """Sets the MLflow run's status if MLflow can be reached; returns the MLflow run's id.

        None leaves it as it is: another start has the run, and its `/metrics` stay named.
        """
        # A target that is still named but does not answer is a run that died: this one ended.
        forget(self._discovery, self._named)
        self.metrics.close()
        self._closed = True
        self._wake.set()
        self._thread.join(_JOIN_SECONDS)
        if self._tracked is None:
            return None
        if status is not None:
            with contextlib.suppress(*_failures()):
                self._tracked.set_status(status)
        return self._tracked.run_id

    def _deliver(self) -> None:
        while not self._closed:
            try:
                self._send_all()
                self._problem = None
            except _failures() as error:
                self._problem = _problem(storage.shown(self._uri), error)
            self._wake.wait(RETRY_SECONDS if self._problem else SEND_SECONDS)
            self._wake.clear()

    def _send_all(self) -> None:
        if self._tracked is None:
            self._tracked = self._connect()
        while True:
            with self._lock:
                batch = [point for _, point in islice(self._queue, 100)]
            if not batch:
                return
            self._tracked.log(batch)
            with self._idle:
                for _ in batch:
                    sender, _point = self._queue.popleft()
                    self._delivered += sender == self._sender
                self._idle.notify_all()


@contextlib.contextmanager
def failing(finish: Callable[[str], object]) -> Iterator[None]:
    """Calls `finish("FAILED")` where the block ends with an error of any kind, which goes on."""
    with contextlib.ExitStack() as stack:
        stack.callback(finish, "FAILED")
        yield
        stack.pop_all()


def _failures() -> tuple[type[Exception], ...]:
    """What MLflow's client raises while its server or database can't be reached."""
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError)


_SILENT = (None, "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
"""MLflow's words for a server that gave no answer, or none of its own; others are a refusal."""


def _problem(where: str, error: Exception) -> str:
    rest = "Training goes on; points are kept and sent later."
    if getattr(error, "error_code", None) in _SILENT:
        # Not what it says: that differs from try to try, and each would be told anew.
        return f"MLflow at {where} can't be reached ({type(error).__name__}). {rest}"
    said = masked(first_line(error))[:300].rstrip(".")
    return f"MLflow at {where} refuses what it is sent: {said}. {rest}"


FLUSH_SECONDS = 60.0
"""MLflow's last chance at a run's end; what it has not got by then is kept in the run's folder."""


def mlflow_status(reason: Reason) -> str | None:
    """MLflow's word for how a run ended; None for one that another start goes on with."""
    if reason == "superseded":
        return None
    return "FINISHED" if reason == "done" else "KILLED"
