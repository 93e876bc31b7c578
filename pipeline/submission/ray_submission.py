"""A job on a Ray cluster, followed by its status: the end of a log stream says nothing of it."""

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import ClusterError, ConfigError, StorageError, UnreachableError
from pipeline.runs.run import Run
from pipeline.submission.ray_jobs_api import RayJob, RayJobs
from pipeline.submission.working_tree import packed

logger = logging.getLogger(__name__)

EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "QUARANTINED": 3, "LOST": 4, "STOPPED": 5}
_LOG_BYTES_PER_SECOND = 500_000
_LAST_LINES = 20


@dataclass(frozen=True)
class Asked:
    """What shall run: `base` begins its ids; `run` is a training's folder, where it can be seen.

    `workers` are its ranks or actors; None: it has none, or was not asked for any.
    """

    command: tuple[str, ...]
    base: str
    run: Run | None
    workers: int | None = None

    @property
    def entrypoint(self) -> str:
        """As Ray takes it."""
        return shlex.join(self.command)


@dataclass(frozen=True)
class Verdict:
    """How a job is or ended; `result` is the last line of its stdout, if that could be read."""

    id: str
    status: str
    message: str = ""
    result: dict[str, Any] | None = None

    @property
    def exit_code(self) -> int:
        """0 for what still goes on, too. A job's own 2 (wrong usage) stays 2."""
        if self.status == "FAILED" and self.message.startswith("exit code 2"):
            return 2
        return EXIT_CODES.get(self.status, 0)


def submit(config: SubmitConfig, jobs: RayJobs, asked: Asked) -> Verdict:
    """Submits, unless the same job runs already, and follows it to its end."""
    for left in range(config.resubmit_on_head_loss, -1, -1):
        package = jobs.upload(*packed(Path(config.ship))) if config.ship else None
        name = _start_or_join(config, jobs, asked, package)
        if config.detach:
            return Verdict(name, "SUBMITTED", f"follow it with --status --id {name}")
        verdict = follow(config, jobs, name, asked.run)
        if verdict.status != "LOST" or left == 0:
            return verdict
        logger.warning("%s: %s; it is submitted again, %d times more", name, verdict.message, left)
        if not _answers(config, jobs):
            return verdict
    raise AssertionError("the loop returns in its last round")


def follow(config: SubmitConfig, jobs: RayJobs, name: str, run: Run | None) -> Verdict:
    """Looks at the job until it has ended, through dropped connections; prints what it prints."""
    before = result_of(run)
    tail = _LogTail(jobs, name)
    silent_since: float | None = None
    while True:
        try:
            job = jobs.job(name)
            if job is None:
                said = f"{jobs.address} answers, but knows no such job: its head was replaced"
                return left_in(run, name, before) or Verdict(name, "LOST", said)
            tail.show(at_last=job.has_ended)
            if silent_since is not None:
                logger.info("%s answers again", jobs.address)
            silent_since = None
            if job.has_ended:
                return _verdict(job, tail.result)
        except UnreachableError as error:
            if silent_since is None:
                logger.warning("%s; the job may well go on. Waiting.", error)
                silent_since = time.monotonic()
            ended = left_in(run, name, before)
            if ended is not None:
                return ended
            if time.monotonic() - silent_since > config.lost_seconds:
                said = f"no answer for {config.lost_seconds:g} s: {error}"
                return Verdict(name, "LOST", said)
        time.sleep(config.poll_seconds)


def status(config: SubmitConfig, jobs: RayJobs, asked: Asked | None) -> Verdict:
    """How the job is now; of a training whose cluster is gone, what its folder says."""
    try:
        job = _find(config, jobs, asked)
    except (UnreachableError, ClusterError) as error:
        if asked is None or asked.run is None:
            raise
        found = left_in(asked.run, asked.base, None)
        return found or Verdict(asked.base, "LOST", f"{error} Its run's folder has no result yet.")
    if not job.has_ended:
        return Verdict(job.id, job.status, job.message)
    return _ended(job, jobs)


def stop(config: SubmitConfig, jobs: RayJobs, asked: Asked | None) -> Verdict:
    """Ends the job: a training by its `STOP` first, which costs no step, then by Ray."""
    job = _find(config, jobs, asked)
    if job.has_ended:
        return Verdict(job.id, job.status, "it had ended before")
    run = Run(job.run_url) if job.run_url else None
    if run is not None:
        storage.publish(run.path("STOP"), b"jobs.submit --stop\n")
        logger.info("%s is asked to leave a last checkpoint and end", job.id)
        deadline = time.monotonic() + config.stop_seconds
        while time.monotonic() < deadline:
            job = jobs.job(job.id) or job
            if job.has_ended:
                return _ended(job, jobs)
            time.sleep(config.poll_seconds)
        logger.warning("%s did not end within %g s", job.id, config.stop_seconds)
    jobs.stop(job.id)
    deadline = time.monotonic() + config.stop_seconds
    while not job.has_ended and time.monotonic() < deadline:
        time.sleep(config.poll_seconds)
        job = jobs.job(job.id) or job
    if not job.has_ended:
        raise ClusterError(
            f"{job.id} is {job.status} still, {config.stop_seconds:g} s after Ray was asked to end "
            "it. Look at its node: the driver may hang in the kernel."
        )
    return _ended(job, jobs)


def logs(config: SubmitConfig, jobs: RayJobs, asked: Asked | None) -> Iterator[str]:
    """What the job printed; when its head is gone, what driver and ranks left in its run."""
    try:
        yield jobs.logs(_find(config, jobs, asked).id)
    except (UnreachableError, ClusterError) as error:
        run = asked.run if asked else None
        newest = run.newest_attempt().number if run else 0
        if run is None or newest == 0:
            raise
        logger.warning("%s From the run's own folder:", error)
        yield from logs_in(run, newest)


def logs_in(run: Run, attempt: int) -> Iterator[str]:
    """What driver and ranks of one of a training's starts left in its folder."""
    for item in storage.list_objects(run.path("logs")):
        name = item.url.rsplit("/", 1)[-1]
        if name.startswith(f"{attempt:06d}"):
            yield f"==> {name} <==\n{storage.read(item.url).decode(errors='replace')}"


def _start_or_join(config: SubmitConfig, jobs: RayJobs, asked: Asked, package: str | None) -> str:
    """The id of the job that runs this: one that does already, or a new one."""
    base, newest = config.id or asked.base, None
    if config.id is None:
        number, newest = _newest(jobs, base)
        name = f"{base}-{number + 1}"
    else:
        name, newest = config.id, jobs.job(config.id)
    if newest is not None and (config.id or not newest.has_ended):
        if newest.entrypoint != asked.entrypoint:
            raise ConfigError(
                f"{newest.id} is {newest.status}, and is another command: {newest.entrypoint}. "
                "Stop it first, or give another --id."
            )
        logger.info("%s is there already, and is followed", newest.id)
        return newest.id
    facts = {"run": asked.run.url} if asked.run else {}
    deadline = time.monotonic() + config.lost_seconds
    while True:
        try:
            if jobs.submit(name, asked.entrypoint, package, config.cpus, facts):
                logger.info("submitted as %s: %s", name, asked.entrypoint)
        except UnreachableError as error:
            # It may have arrived: under the same id it can't begin twice.
            if time.monotonic() > deadline:
                raise
            logger.warning("%s; %s is asked for again", error, name)
            time.sleep(config.poll_seconds)
        else:
            return name


def _newest(jobs: RayJobs, base: str) -> tuple[int, RayJob | None]:
    """The highest number among the ids BASE-NUMBER, and that job."""
    form = re.compile(rf"{re.escape(base)}-(\d+)")
    found = [(int(m[1]), job) for job in jobs.jobs() if (m := form.fullmatch(job.id))]
    return max(found, key=lambda pair: pair[0], default=(0, None))


def _find(config: SubmitConfig, jobs: RayJobs, asked: Asked | None) -> RayJob:
    if config.id is not None:
        job, name = jobs.job(config.id), config.id
    else:
        assert asked is not None, "the config has an id or a command"
        name = f"{asked.base}-N"
        job = _newest(jobs, asked.base)[1]
    if job is None:
        raise ClusterError(f"{jobs.address} knows no job {name}. --list shows those it knows.")
    return job


def _ended(job: RayJob, jobs: RayJobs) -> Verdict:
    tail = _LogTail(jobs, job.id)
    tail.read()
    return _verdict(job, tail.result)


def _verdict(job: RayJob, result: dict[str, Any] | None) -> Verdict:
    # Ray adds the end of the log, which has been shown.
    state, message = job.status, job.message.partition(", last available logs")[0]
    if job.was_lost:
        state = "LOST"
    elif state == "FAILED" and job.exit_code == 3:
        state = "QUARANTINED"
    elif state == "FAILED" and job.exit_code:
        message = f"exit code {job.exit_code}: {message}"
    elif state == "SUCCEEDED" and result is not None and result.get("reason") == "stopped":
        state = "STOPPED"
    return Verdict(job.id, state, message, result)


def result_of(run: Run | None) -> dict[str, Any] | None:
    """What a finished training left in its folder; None where there is none to be seen."""
    if run is None:
        return None
    try:
        found = run.result()
        return None if found is None else found.to_json()
    except StorageError as error:
        logger.warning("the run's folder can't be seen from here: %s", error)
        return None


def left_in(run: Run | None, name: str, before: dict[str, Any] | None) -> Verdict | None:
    """A training that has finished since says so in its folder, whatever became of the head."""
    result = result_of(run)
    if result is None or result == before:
        return None
    return Verdict(name, "SUCCEEDED", "its run's folder says so; its head does not answer", result)


def _answers(config: SubmitConfig, jobs: RayJobs) -> bool:
    """Waits for a head in place of the lost one; False if none came."""
    deadline = time.monotonic() + config.lost_seconds
    while time.monotonic() < deadline:
        try:
            jobs.jobs()
        except (UnreachableError, ClusterError):
            time.sleep(config.poll_seconds)
        else:
            return True
    return False


def _result_in(text: str) -> dict[str, Any] | None:
    """The result that a job prints last; what it still says on stderr may come after it."""
    for line in reversed(text.rstrip().splitlines()[-_LAST_LINES:]):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


class _LogTail:
    """Prints on stderr what is new in a job's log; a log that can't be had is no reason to stop."""

    def __init__(self, jobs: RayJobs, name: str) -> None:
        self._jobs, self._name = jobs, name
        self._shown = 0
        self._next = 0.0
        self.result: dict[str, Any] | None = None

    def show(self, *, at_last: bool) -> None:
        """Asks for the log unless that was a moment ago: Ray always sends all of it."""
        if not at_last and time.monotonic() < self._next:
            return
        text = self.read()
        sys.stderr.write(text[self._shown :])
        sys.stderr.flush()
        self._shown = max(self._shown, len(text))
        self._next = time.monotonic() + len(text) / _LOG_BYTES_PER_SECOND

    def read(self) -> str:
        """The whole log; "" where it can't be had."""
        try:
            text = self._jobs.logs(self._name)
        except (UnreachableError, ClusterError):
            return ""
        self.result = _result_in(text)
        return text
