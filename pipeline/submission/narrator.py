"""What a follower says while a job goes on: its state, its failed tries, and what it waits for."""

import logging
import time
from dataclasses import replace

from pipeline.submission.job_output import cause_of
from pipeline.submission.place import Job, Place
from pipeline.submission.verdict import Verdict

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 20.0
"""After so long in a state, and then as often, it is asked what the job waits for."""
_RUNNING_SECONDS = 40.0
"""So often of one that runs, and may wait for more workers all the same."""
_LOG_SECONDS = 60.0
"""So long the last lines of a failed try's log may take."""
_REPEAT_SECONDS = 600.0
"""As often the same reason is told again, so that a log's last lines have it."""


class Narrator:
    """Says each thing once: a state when it begins, a try's cause, a reason to wait."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._state = ""
        self._failed_tries = 0
        self._is_untold = False
        self._waited = ""
        self._reason = ""
        self._asked_at = self._told_at = self._failed_at = time.monotonic()

    def tell(self, job: Job) -> None:
        """To be called at each look at the job."""
        self._tell_failed_try(job)
        state = job.status
        if job.failed_tries:
            state += f", try {job.failed_tries + 1} of {job.tries}"
        if state != self._state and not job.has_ended:
            logger.info("%s: %s", job.id, state)
            self._state, self._reason = state, ""
            self._asked_at = time.monotonic()
        if not job.has_ended:
            self._tell_reason(job)

    def with_reason(self, end: Verdict) -> Verdict:
        """The verdict, with what the job waited for to the last: `DeadlineExceeded` says no why.

        One with an exit code or a result ran, if too briefly for a look to see it.
        """
        ran = end.job_exit_code or end.result is not None
        if end.status != "FAILED" or ran or not self._reason:
            return end
        return replace(end, message=f"{end.message}; to the last it waited: {self._reason}")

    def _tell_failed_try(self, job: Job) -> None:
        now = time.monotonic()
        if job.failed_tries != self._failed_tries:
            self._failed_tries, self._failed_at = job.failed_tries, now
            self._waited = f"to the last it waited: {self._reason}" if self._reason else ""
            self._is_untold = job.failed_tries > 0
        if job.has_ended or not self._is_untold:
            return
        # KubeRay keeps the cause for a few seconds; then it is read in the try's log, whose last
        # lines are stored a moment after its end.
        said = cause_of(job.output_end) or job.message if job.status == "RETRYING" else ""
        cause = said or earlier_cause(self._place, job) or self._waited
        if not cause and now - self._failed_at < _LOG_SECONDS:
            return
        self._is_untold = False
        logger.warning(
            "%s: try %d of %d failed, and it is tried again: %s",
            job.id, job.failed_tries, job.tries, cause or "the place says no more why",
        )  # fmt: skip

    def _tell_reason(self, job: Job) -> None:
        now = time.monotonic()
        if now - self._asked_at < (_RUNNING_SECONDS if job.status == "RUNNING" else _WAIT_SECONDS):
            return
        self._asked_at = now
        reason = self._place.why_waiting(job)
        if reason and (reason != self._reason or now - self._told_at >= _REPEAT_SECONDS):
            logger.warning("%s waits: %s", job.id, reason)
            self._told_at = now
        self._reason = reason


def earlier_cause(place: Place, job: Job) -> str:
    """The last error of the newest try that failed, as its kept log has it; "" if that has none.

    A try whose driver never began has left no log, and then nobody knows whose the others are.
    """
    tries = place.earlier_tries(job)
    return cause_of(tries[-1]) if len(tries) == job.failed_tries > 0 else ""
