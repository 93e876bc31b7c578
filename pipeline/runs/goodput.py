"""Where a run's time goes: each second of its wall clock is in one of seven states.

RUN/time/START.json   a tally of the whole run up to now, written every few seconds by rank 0

start       from a start's beginning to its first step, where nothing had died before
recover     what a death costs before the next step: from the last tally of what died, to that step
data_wait   no batch is ready
productive  steps that were not made before, validations, and whatever comes between them
redo        steps made again, because they came after the last checkpoint
checkpoint  the loop stands still for a checkpoint or the model: waiting for the last, and copying
idle        between an end that was asked for and the next start

The clock starts when the driver of the run's first start claims it, and stands still once the run
is done. What a dead start did after its last tally is counted as `recover`: it may be lost.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple, get_args

from pipeline import storage
from pipeline.background import Repeated
from pipeline.errors import (
    ObjectNotFoundError,
    PipelineError,
    RunError,
    ShortageError,
    StorageError,
    without_advice,
)
from pipeline.runs.run import Run, Start

logger = logging.getLogger(__name__)

State = Literal["productive", "start", "data_wait", "checkpoint", "recover", "redo", "idle"]
STATES: tuple[State, ...] = get_args(State)
WRITE_SECONDS = 5.0
"""What a death loses of the tally, and counts as `recover`; each time is a request to storage."""


@dataclass
class Tally:
    """The run's seconds in each state up to `until` (seconds since 1970), and its furthest step.

    `ended`: as it was asked to; otherwise whoever wrote it lives, or has died since.
    """

    seconds: dict[State, float]
    until: float
    step: int = 0
    ended: bool = False


TALLY = storage.DocumentKind(
    "vae-pipeline/tally", 2, RunError, "The run goes on without what it counted."
)


def productive_share(seconds: Mapping[State, float]) -> float | None:
    """The goodput: productive seconds over all but the idle ones; None before there are any."""
    used = sum(seconds.values()) - seconds.get("idle", 0.0)
    return seconds.get("productive", 0.0) / used if used > 0 else None


def taken_up(before: Tally | None, start: float, began: float) -> tuple[Tally, State]:
    """The tally with which a claim goes on at `began`, and the state that it is in.

    `before` is the last one of the claims before it; None where there are none. The driver of this
    one began at `start`.
    """
    if before is None:
        before = Tally(dict.fromkeys(STATES, 0.0), start, ended=True)
    seconds = dict(before.seconds)
    state: State = "recover"
    if before.ended:
        state = "start"
        seconds["idle"] += max(0.0, start - before.until)
        seconds["start"] += max(0.0, began - max(start, before.until))
    else:
        seconds["recover"] += max(0.0, began - before.until)
    return Tally(seconds, max(began, before.until), before.step), state


class WallClock:
    """Of one claim: adds what passes to the state that `enter` said last. Only rank 0's `writes`.

    A claim that another one has replaced writes nothing any more.
    """

    def __init__(self, run: Run, start: Start, *, writes: bool) -> None:
        self._run, self._start = run, start
        began = time.time()
        before = _newest(run, start) if writes else None
        claimed = run.claimed_at(start) if writes else None
        self._tally, self._state = taken_up(before, claimed or began, began)
        self._made_before = self._tally.step
        self._since = time.monotonic()
        self._lock = threading.Lock()
        # At once, too: a start that dies in its first seconds was a start that died.
        self._often = Repeated("goodput", WRITE_SECONDS, self._write, last=True) if writes else None

    def enter(self, state: State) -> None:
        """What passes from now on belongs to `state`."""
        with self._lock:
            self._pass_on()
            self._state = state

    def step(self, number: int) -> None:
        """Optimiser step `number` (the first is 1) begins."""
        self.enter("redo" if number <= self._made_before else "productive")
        self._tally.step = max(self._tally.step, number)

    def totals(self) -> dict[State, float]:
        """The run's seconds by state, since its first start."""
        with self._lock:
            self._pass_on()
            return dict(self._tally.seconds)

    def finish(self, *, as_asked: bool) -> None:
        """The run ends; what passes until its next start is idle if it does so as it was asked."""
        self._tally.ended = as_asked

    def close(self) -> None:
        """Writes the last tally and ends the thread."""
        if self._often is not None:
            self._often.close()

    def _pass_on(self) -> None:
        now = time.monotonic()
        self._tally.seconds[self._state] += now - self._since
        self._tally.until += now - self._since
        self._since = now

    def _write(self) -> None:
        """Keeps the tally, unless another claim owns the run."""
        with self._lock:
            self._pass_on()
            tally = TALLY.encode(asdict(self._tally))
        path = self._run.path("time", f"{self._start.name}.json")
        try:
            if self._run.newest_start() <= self._start:
                storage.publish(path, tally)
        except StorageError as error:
            logger.warning("%s can't be written, training goes on: %s", path, without_advice(error))


def furthest_step(run: Run) -> int:
    """The furthest step that any start has begun, by its tally: 0 where none has made one."""
    return known_furthest(run, Start(10**9)).step


class Furthest(NamedTuple):
    """The furthest step that starts are known to have begun; not `exact`: there may be more."""

    step: int
    exact: bool


def known_furthest(run: Run, start: Start) -> Furthest:
    """How far the starts before `start` got, by their tallies.

    Exact only where the last of them left one as it ended: one that died, or whose tallies storage
    refused, may have made steps that nobody counted.
    """
    tally, last = _newest(run, start), run.claim_before(start)
    if tally is None:
        return Furthest(0, exact=last is None)
    own = last is not None and storage.exists(run.path("time", f"{last.name}.json"))
    return Furthest(tally.step, exact=tally.ended and own)


def last_seen(run: Run) -> float | None:
    """When the newest start of a run was last known to live, in seconds since 1970.

    It says so every few seconds. None where no start is known.
    """
    tally, newest = _newest(run, Start(10**9)), run.newest_start()
    known = [tally.until if tally else None, run.claimed_at(newest)]
    return max((seconds for seconds in known if seconds is not None), default=None)


def _newest(run: Run, start: Start) -> Tally | None:
    """The last whole tally of the claims before `start`.

    Where none of them left one, they died: a tally of nothing since the first of them. None where
    there are no such claims.
    """
    try:
        urls = [item.url for item in storage.list_objects(run.path("time"))]
    except ObjectNotFoundError:
        urls = []
    own = f"{start.name}.json"
    before = run.claim_before(start)
    names = {url.rsplit("/", 1)[-1] for url in urls}
    if before is not None and f"{before.name}.json" not in names and names:
        logger.warning(
            "%s: the tally of start %s is gone, and its seconds with it",
            run.path("time"),
            before.name,
        )
    if not names and _has_saved(run):
        logger.warning("%s: every tally is gone, and its seconds with it", run.path("time"))
    for url in sorted((url for url in urls if url.rsplit("/", 1)[-1] < own), reverse=True):
        try:
            tally = TALLY.typed(Tally, storage.read_document(TALLY, url), url)
        except ShortageError:
            raise
        except PipelineError as error:
            logger.warning("%s is skipped, the one before it is taken: %s", url, error)
            continue
        _check_newest(run, tally)
        return replace(tally, seconds={**dict.fromkeys(STATES, 0.0), **tally.seconds})
    first = run.claimed_at(Start(1)) if start.number > 1 or start.restart > 1 else None
    return None if first is None else Tally(dict.fromkeys(STATES, 0.0), first)


def _has_saved(run: Run) -> bool:
    """Whether a start has got as far as a checkpoint or an end: it left a tally before."""
    try:
        return any(True for _ in storage.list_objects(run.path("checkpoints")))
    except ObjectNotFoundError:
        return run.result() is not None


def _check_newest(run: Run, tally: Tally) -> None:
    """Warns where a start that ended in order had got further: it left a tally of its last step."""
    try:
        end = run.result() or run.ended()
    except ShortageError:
        raise
    except PipelineError as error:
        logger.warning("%s", error)
        return
    if end is not None and tally.step < end.steps:
        logger.warning(
            "%s: the tally of step %d is gone, and its seconds with it", run.path("time"), end.steps
        )
