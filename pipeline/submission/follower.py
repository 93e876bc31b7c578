"""Submit, follow, stop, and say how a job is: the same at every place.

A job is followed by its status: the end of a log stream says nothing of it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, NotNowError, StorageError, UnreachableError
from pipeline.json_value import Json
from pipeline.runs.run import Run
from pipeline.submission.job_output import cause_of
from pipeline.submission.log_tail import LogTail
from pipeline.submission.narrator import Narrator, earlier_cause
from pipeline.submission.place import Job, Output, Place, Request
from pipeline.submission.verdict import Verdict, end_of, left_in, verdict

logger = logging.getLogger(__name__)
T = TypeVar("T")

PASSING = (UnreachableError, NotNowError)

_LONGEST_PAUSE_SECONDS = 15.0
"""Between two looks at a job that has gone on for a while: a place has many followers."""
_PATIENT_SECONDS = 5.0
"""What takes longer is told to who waits."""
_MEETING_SECONDS = 5.0
"""A place that has never answered is misnamed, or down: nothing of ours runs there to wait for."""


@dataclass
class Silence:
    """Since when a place has refused or not answered, and whether that is still borne."""

    limit_seconds: float
    meanwhile: str = "the job may well go on. Waiting."
    since: float | None = None
    was_answered: bool = False

    def bears(self, error: Exception) -> bool:
        """False once it has lasted too long."""
        self.was_answered = not isinstance(error, UnreachableError)
        if self.since is None:
            logger.warning("%s; %s", str(error).rstrip("."), self.meanwhile)
            self.since = time.monotonic()
        return time.monotonic() - self.since <= self.limit_seconds

    def ends(self, place: Place) -> None:
        """The place has answered, and has not refused."""
        if self.since is not None:
            now = "refuses it no more" if self.was_answered else "answers again"
            logger.info("%s %s", place.address, now)
        self.since = None


def submit(config: SubmitConfig, place: Place, request: Request) -> Verdict:
    """Starts the job, unless the same one runs already, and follows it to its end."""
    for advice in place.advice(request):
        logger.warning(advice)
    _meet(config, place, request)
    before = end_of(request.run)
    if before.hidden:
        logger.warning(
            "the run's folder can't be seen from here, so whether the training was stopped before "
            "its last step, and whether it left a checkpoint then, won't be told: %s",
            before.hidden,
        )
    lost: Verdict | None = None
    for left in range(config.resubmit_on_head_loss, -1, -1):
        try:
            name = _start_or_join(config, place, request)
        except (*PASSING, ClusterError, ConfigError) as error:
            if lost is None:
                raise
            # What this refusal is about is the next one; the job was lost before.
            return replace(lost, message=f"{lost.message}; submitting it again: {error}")
        if config.detach:
            return Verdict(name, "SUBMITTED")
        lost = follow(config, place, request, name, before.result)
        if lost.status != "LOST" or left == 0:
            return lost
        logger.warning("%s: %s; it is submitted again, %d times more", name, lost.message, left)
    raise AssertionError("the loop returns in its last round")


def follow(
    config: SubmitConfig,
    place: Place,
    request: Request,
    name: str,
    before: Json | None,
) -> Verdict:
    """Looks at the job until it has ended, or could not be looked at for `lost_seconds`.

    `before` is what a training's folder said of its end when it was submitted.
    """
    tail, narrator, silence = LogTail(place), Narrator(place), Silence(config.lost_seconds)
    began = time.monotonic()
    while True:
        try:
            job = place.job(name)
            if job is None:
                return left_in(request.run, name, before) or _gone(place, name)
            narrator.tell(job)
            tail.show(job)
            silence.ends(place)
            if job.has_ended:
                return narrator.with_reason(verdict(job, tail.printed, request.run))
        # What was granted a moment ago and is refused now is no wrong usage: an API server that
        # starts refuses everything until it has read who may do what (seen: for 7 s).
        except (*PASSING, ClusterError, ConfigError) as error:
            ended = left_in(request.run, name, before)
            if ended is not None:
                return ended
            if not silence.bears(error):
                return Verdict(
                    name,
                    "LOST",
                    f"it could not be looked at for {config.lost_seconds:g} s, and may well go on: "
                    f"{error}",
                )
        pause = max(config.poll_seconds, (time.monotonic() - began) / 60)
        time.sleep(min(pause, _LONGEST_PAUSE_SECONDS))


def status(place: Place, request: Request) -> Verdict:
    """How the job is now; of a training whose cluster is gone, what its folder says."""
    try:
        job = _found(place, request)
    except (UnreachableError, ClusterError) as error:
        if request.run is None:
            raise
        name = request.id or request.base
        found = left_in(request.run, name, None)
        if found is not None:
            return found
        if isinstance(error, ClusterError):
            raise
        return Verdict(name, "LOST", f"{error} Its run's folder says of no end yet.")
    if job.has_ended:
        return _ended(place, request, job)
    said = [place.why_waiting(job) or job.message]
    if job.failed_tries:
        cause = cause_of(job.output_end) or earlier_cause(place, job) or "no log of it can be read"
        said.append(f"try {job.failed_tries} of {job.tries} failed: {cause}")
    return Verdict(job.id, job.status, "; ".join(filter(None, said)))


def stop(config: SubmitConfig, place: Place, request: Request) -> Verdict:
    """Ends the job: a training by its `STOP` first, which costs no step, then by its place."""
    job = _found(place, request)
    if job.has_ended:
        ended = _ended(place, request, job)
        return replace(ended, message=f"it had ended before: {ended.message}")
    lost, before = "", end_of(request.run).result
    if request.run is not None and job.status == "RUNNING":
        # Its driver is told by a SIGTERM, and may still be saving.
        lost = "; whether it still left a last checkpoint, its run's folder says once it has ended"
        if _asked_to_stop(request.run, job):
            now = _awaited(config, place, job)
            if now is not None and now.has_ended:
                return _ended(place, request, now)
            logger.warning("%s did not end within %g s", job.id, config.stop_seconds)
    place.end(job)
    now = _awaited(config, place, job)
    if now is None:
        gone = _gone(place, job.id)
        gone = replace(gone, message=f"{gone.message}{lost}")
        return left_in(request.run, job.id, before) or gone
    if not now.has_ended:
        raise ClusterError(
            f"{job.id} is {now.status} still, {config.stop_seconds:g} s after {place.address} was "
            "asked to end it. Look at its node, where the driver may hang in the kernel, or, on "
            "Kubernetes, at the RayJob's finalizers and at KubeRay's operator."
        )
    ended = _ended(place, request, now)
    return ended if ended.result else replace(ended, message=f"{ended.message}{lost}")


def name_of(place: Place, request: Request) -> str | None:
    """The id of the job that is meant; None where its place knows none, or can't be asked."""
    try:
        job = place.find(request)
    except (*PASSING, ClusterError):
        return None
    return job.id if job is not None else None


def logs(place: Place, request: Request) -> Iterator[str]:
    """What the job printed; where that is not to be had, what a training's folder has of it."""
    problem: Exception | None = None
    try:
        job = _found(place, request)
        earlier = place.earlier_tries(job)
        yield from (f"==> an earlier try <==\n{text}" for text in earlier)
        if earlier:
            yield "==> the newest try <==\n"
        output = place.output(job)
    except UnreachableError as error:
        problem, output = error, Output("", whole=False)
    except ClusterError as error:
        problem, output = error, place.kept_output(request)
    if output.whole:
        yield output.text
        return
    newest = request.run.newest_start().number if request.run else 0
    if request.run is not None and newest:
        if problem is not None:
            logger.warning("%s From the run's own folder:", problem)
        yield from logs_in(request.run, newest)
    if output.text:
        yield f"==> the end of what the driver printed <==\n{output.text}"
    elif not newest:
        raise problem or ClusterError(
            f"{place.address} keeps of {request.id or request.base} only the end of what a failed "
            "job printed, and has none"
            + ("; its run was never begun." if request.run else ".")
            + " While its cluster lives, its head has all of it: "
            "/tmp/ray/session_latest/logs/job-driver-*"
        )


def logs_in(run: Run, start: int) -> Iterator[str]:
    """What driver and ranks of one of a training's starts left in its folder."""
    for item in storage.list_objects(run.path("logs")):
        name = item.url.rsplit("/", 1)[-1]
        if name.startswith(f"{start:06d}"):
            yield f"==> {name} <==\n{storage.read(item.url).decode(errors='replace')}"


def _meet(config: SubmitConfig, place: Place, request: Request) -> None:
    """Raises `UnreachableError` within seconds where nothing answers at first."""
    deadline = time.monotonic() + min(_MEETING_SECONDS, config.lost_seconds)
    while True:
        try:
            place.find(request)
        except NotNowError:
            return  # It is there, and starts.
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(min(config.poll_seconds, 1))
        else:
            return


def _start_or_join(config: SubmitConfig, place: Place, request: Request) -> str:
    """The id of the job that runs this: one that does already, or a new one.

    A request whose answer was lost may have arrived: under the same name it can't begin twice.
    """
    while True:
        newest = _patiently(config, place, lambda: place.find(request))
        if newest is not None and not newest.has_ended:
            return _joined(request, newest)
        name = place.free_id(request, newest)
        if newest is not None and newest.id == name:
            logger.info("%s has ended (%s), and makes room", name, newest.status)
            _make_room(config, place, newest)
        if _patiently(config, place, lambda: place.start(request, name)):  # noqa: B023 - called here
            logger.info("submitted to %s as %s: %s", place.address, name, request.entrypoint)
            return name
        other = _patiently(config, place, lambda: place.job(name))  # noqa: B023 - called here
        if other is not None:
            return _joined(request, other)
        time.sleep(config.poll_seconds)  # It was deleted at once.


def _joined(request: Request, job: Job) -> str:
    if job.entrypoint != request.entrypoint:
        raise ConfigError(
            f"{job.id} is {job.status}, and is another command: {job.entrypoint}. "
            "Stop it first, or give another `--id ID`."
        )
    logger.info("%s is there already, and is followed", job.id)
    return job.id


def _make_room(config: SubmitConfig, place: Place, job: Job) -> None:
    _patiently(config, place, lambda: place.end(job))
    deadline = time.monotonic() + config.stop_seconds
    while (now := _patiently(config, place, lambda: place.job(job.id))) and now.uid == job.uid:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{job.id} is still there {config.stop_seconds:g} s after its deletion. On "
                f"Kubernetes, look at its finalizers: kubectl get rayjob {job.id} -o yaml"
            )
        time.sleep(min(config.poll_seconds, 1))


def _patiently(config: SubmitConfig, place: Place, ask: Callable[[], T]) -> T:
    """What `ask` returns, asked again while the place is away or refuses for now."""
    # Nothing is said of a job: it may not be made yet.
    silence = Silence(config.lost_seconds, f"asking again, for {config.lost_seconds:g} s at most.")
    while True:
        try:
            answer = ask()
        except PASSING as error:
            if not silence.bears(error):
                raise
            time.sleep(config.poll_seconds)
        else:
            silence.ends(place)
            return answer


def _asked_to_stop(run: Run, job: Job) -> bool:
    try:
        storage.publish(run.path("STOP"), b"jobs.submit --stop\n")
    except StorageError as error:
        logger.warning("%s can't be asked for a last checkpoint from here: %s", job.id, error)
        return False
    logger.info("%s is asked to leave a last checkpoint and end", job.id)
    return True


def _awaited(config: SubmitConfig, place: Place, job: Job) -> Job | None:
    """The job once it has ended, or after `stop_seconds`; None once it is gone."""
    began = time.monotonic()
    deadline, told = began + config.stop_seconds, began + _PATIENT_SECONDS
    now: Job | None = job
    while time.monotonic() < deadline:
        if time.monotonic() > told:
            told += 6 * _PATIENT_SECONDS
            logger.info(
                "%s is still ending after %.0f s, and is waited for until %.0f s are over: a "
                "training saves, and hands MLflow its last points, for a minute where that is down",
                job.id, time.monotonic() - began, config.stop_seconds,
            )  # fmt: skip
        now = _patiently(config, place, lambda: place.job(job.id))
        if now is None or now.uid != job.uid:
            return None
        if now.has_ended:
            return now
        time.sleep(config.poll_seconds)
    return now


def _gone(place: Place, name: str) -> Verdict:
    if place.gone == "LOST":
        return Verdict(name, "LOST", f"{place.address} knows it no more: its head was replaced")
    return Verdict(name, "STOPPED", "it was deleted, with its cluster")


def _found(place: Place, request: Request) -> Job:
    job = place.find(request)
    if job is None:
        raise unknown(place, request.id or request.base)
    return job


def unknown(place: Place, name: str) -> ClusterError:
    """What is said of a job that its place does not know."""
    return ClusterError(
        f"{place.address} knows no job {name}. `python -m jobs.submit --list` shows those it knows."
    )


def _ended(place: Place, request: Request, job: Job) -> Verdict:
    tail = LogTail(place)
    tail.read(job)
    return verdict(job, tail.printed, request.run)
