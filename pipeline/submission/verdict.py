"""What has become of a job: its place's word, its exit code, and what a training's folder says."""

import logging
from dataclasses import dataclass

from pipeline.errors import StorageError
from pipeline.json_value import Json
from pipeline.runs.run import Run
from pipeline.submission.job_output import Printed, cause_of
from pipeline.submission.place import Job

logger = logging.getLogger(__name__)

EXIT_CODES = {"SUCCEEDED": 0, "FAILED": 1, "QUARANTINED": 3, "LOST": 4, "STOPPED": 5}


@dataclass(frozen=True)
class Verdict:
    """How a job is or ended; `result` is its result's JSON, if that could be read.

    `job_exit_code` is the driver's, where it is known.
    """

    id: str
    status: str
    message: str = ""
    result: Json | None = None
    job_exit_code: int | None = None

    @property
    def exit_code(self) -> int:
        """0 for what still goes on, too. A job's own 2 (wrong usage) stays 2."""
        if self.status == "FAILED" and self.job_exit_code == 2:
            return 2
        return EXIT_CODES.get(self.status, 0)


@dataclass(frozen=True)
class RunState:
    """How the newest start of a training ended, as its folder says.

    `result` is None while it has not ended, or where that can't be seen from here, for the reason
    `hidden`.
    """

    result: Json | None = None
    hidden: str = ""


def end_of(run: Run | None) -> RunState:
    """How a training ended; nothing for any other job."""
    if run is None:
        return RunState()
    try:
        ended = run.ended()
        return RunState(ended.to_json() if ended is not None else None)
    except StorageError as error:
        return RunState(hidden=str(error))


def verdict(job: Job, printed: Printed, run: Run | None) -> Verdict:
    """What a job that has ended came to, by its place's word and by what it `printed` itself."""
    if job.was_lost:
        return left_in(run, job.id, None) or Verdict(job.id, "LOST", job.message)
    if job.status == "FAILED":
        state = "QUARANTINED" if job.exit_code == 3 else "FAILED"
        cause = printed.cause or cause_of(job.output_end) or job.message
        # Ray says 0 where the driver could not even begin.
        message = f"exit code {job.exit_code}: {cause}" if job.exit_code else cause
        return Verdict(job.id, state, message, printed.result, job.exit_code)
    if job.status == "STOPPED" and printed.exit_code is not None:
        code = printed.exit_code  # Its own: nobody else stopped it.
        state = "QUARANTINED" if code == 3 else "FAILED"
        said = f"exit code {code}{': ' if printed.cause else ''}{printed.cause}"
        return Verdict(job.id, state, said, printed.result, code)
    if job.status != "SUCCEEDED":
        result = printed.result if printed.result is not None else end_of(run).result
        return Verdict(job.id, job.status, job.message + _unknown(job, printed), result)
    end = RunState(printed.result) if printed.result is not None else end_of(run)
    if end.hidden:
        return Verdict(
            job.id,
            "SUCCEEDED",
            f"{job.message} Whether it made its last step or was stopped before can't be seen from "
            f"here: {end.hidden}",
        )
    return _of_result(job.id, job.message, end.result)


def _unknown(job: Job, printed: Printed) -> str:
    if job.status != "STOPPED" or not printed.is_empty:
        return ""
    return (
        " Whether somebody stopped it, or it ended itself since it could only fail again (exit "
        "code 2 or 3), its output would say, of which nothing can be read from here."
    )


def left_in(run: Run | None, name: str, before: Json | None) -> Verdict | None:
    """A training that has ended since says so in its folder, whatever became of its cluster.

    `before` is what the folder said when the job was submitted.
    """
    result = end_of(run).result
    if result is None or result == before:
        return None
    return _of_result(name, "its run's folder says so; its cluster does not answer", result)


def _of_result(name: str, message: str, result: Json | None) -> Verdict:
    """Of a driver that ended well; a training's may have been told to, before its last step."""
    reason = (result or {}).get("reason", "done")
    if result is None or reason == "done":
        return Verdict(name, "SUCCEEDED", message, result)
    return Verdict(
        name,
        "STOPPED",
        f"{reason} at step {result.get('steps')}, where it left a checkpoint: the same command "
        "goes on from there",
        result,
    )
