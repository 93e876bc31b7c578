"""What a follower says while a job goes on: its state, its failed tries, and what it waits for."""

import logging
import time
from dataclasses import replace

from pipeline.submission.job_output import cause_of
from pipeline.submission.place import Job, Place
from pipeline.submission.verdict import Verdict

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 20.0
"""After so long without work, and then as often, it is asked what the job waits for."""
_REPEAT_SECONDS = 600.0
"""As often the same reason is told again, so that a log's last lines have it."""


class Narrator:
    """Says each thing once: a state when it begins, a try's cause, a reason to wait."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._state = ""
        self._failed_tries: int | None = None
        self._reason = ""
        self._asked_at = self._told_at = time.monotonic()

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
        if not job.has_ended and job.status != "RUNNING":
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
        before, self._failed_tries = self._failed_tries, job.failed_tries
        if job.has_ended or not job.failed_tries or job.failed_tries == before:
            return
        # KubeRay keeps the cause for a few seconds, until the failed try's cluster is gone.
        cause = cause_of(job.output_end) or job.message or "the place says no more why"
        logger.warning(
            "%s: try %d of %d failed, and it is tried again: %s",
            job.id, job.failed_tries, job.tries, cause,
        )  # fmt: skip

    def _tell_reason(self, job: Job) -> None:
        now = time.monotonic()
        if now - self._asked_at < _WAIT_SECONDS:
            return
        self._asked_at = now
        reason = self._place.why_waiting(job)
        if reason and (reason != self._reason or now - self._told_at >= _REPEAT_SECONDS):
            logger.warning("%s waits: %s", job.id, reason)
            self._reason, self._told_at = reason, now
