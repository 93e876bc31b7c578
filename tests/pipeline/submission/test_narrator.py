"""A follower says each thing once: a state, a failed try with its cause, a reason to wait."""

import logging
import time

import pytest

from pipeline.submission.narrator import Narrator
from pipeline.submission.place import Job
from pipeline.submission.ray_jobs import RayJobs
from pipeline.submission.verdict import Verdict


class Waiting(RayJobs):
    """A place that says why its job waits."""

    reason = "no node"
    tries: tuple[str, ...] = ()

    def earlier_tries(self, job: Job) -> tuple[str, ...]:
        return self.tries

    def why_waiting(self, job: Job) -> str:
        return self.reason


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def job(status: str, *, ended: bool = False, tries: int = 1, failed: int = 0) -> Job:
    return Job(
        "first", "", status, "python", has_ended=ended, message="out of memory",
        tries=tries, failed_tries=failed,
    )  # fmt: skip


def test_a_state_is_told_when_it_begins_and_an_end_is_left_to_the_verdict(
    told: pytest.LogCaptureFixture,
) -> None:
    teller = Narrator(Waiting("http://127.0.0.1:9"))
    for state in ("PENDING", "PENDING", "RUNNING", "RUNNING"):
        teller.tell(job(state))
    teller.tell(job("SUCCEEDED", ended=True))
    assert told.messages == ["first: PENDING", "first: RUNNING"]


def test_a_failed_try_is_told_with_its_cause_once(told: pytest.LogCaptureFixture) -> None:
    teller = Narrator(Waiting("http://127.0.0.1:9"))
    for state, failed in (("RUNNING", 0), ("RETRYING", 1), ("RUNNING", 1)):
        teller.tell(job(state, tries=4, failed=failed))
    failures = [message for message in told.messages if "failed" in message]
    assert failures == ["first: try 1 of 4 failed, and it is tried again: out of memory"]
    assert told.messages[-1] == "first: RUNNING, try 2 of 4"


def test_the_cause_of_a_failed_try_that_nobody_saw_is_read_in_its_log_or_was_its_waiting(
    told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    place = Waiting("http://127.0.0.1:9")
    teller = Narrator(place)
    for failed in (0, 0, 1):
        now[0] += 30
        teller.tell(job("PENDING", tries=4, failed=failed))
    # The last lines of the second's log come a moment later, and of the third's none.
    teller.tell(job("RUNNING", tries=4, failed=2))
    place.tries = ("nothing", "INFO begins\nValueError: no such key\n")
    for failed, seconds in ((2, 2), (2, 2), (3, 2), (3, 30), (3, 30)):
        now[0] += seconds
        teller.tell(job("RUNNING", tries=4, failed=failed))
    failures = [message for message in told.messages if "failed" in message]
    assert failures == [
        "first: try 1 of 4 failed, and it is tried again: to the last it waited: no node",
        "first: try 2 of 4 failed, and it is tried again: ValueError: no such key",
        "first: try 3 of 4 failed, and it is tried again: the place says no more why",
    ]


def test_a_reason_is_told_when_it_is_another_and_again_after_a_while(
    told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    place = Waiting("http://127.0.0.1:9")
    teller = Narrator(place)
    for second in range(0, 700, 10):
        now[0] = 1000.0 + second
        place.reason = "no node" if second < 45 else "no image"
        teller.tell(job("PENDING"))
    waits = [message for message in told.messages if "waits" in message]
    assert waits == ["first waits: no node", "first waits: no image", "first waits: no image"]
    late = Verdict("first", "FAILED", "PreRunningDeadlineExceeded")
    assert teller.with_reason(late).message == (
        "PreRunningDeadlineExceeded; to the last it waited: no image"
    )
    brief = Verdict("first", "FAILED", "exit code 2: no such flag", job_exit_code=2)
    assert teller.with_reason(brief) == brief, "it ran between two looks"
    place.reason = ""
    for _ in range(2):
        now[0] += 30
        teller.tell(job("RUNNING"))
    assert teller.with_reason(late) == late, "it did run"
    place.reason = "1 pod: Unschedulable"
    now[0] += 30
    teller.tell(job("RUNNING"))
    assert told.messages[-1] == "first waits: 1 pod: Unschedulable"
