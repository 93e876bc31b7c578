"""A job's end is put into words that are its own."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.run import Run, Start
from pipeline.submission.job_output import Printed, cause_of, printed, said_and_printed
from pipeline.submission.own_job import NOT_REPEATED
from pipeline.submission.place import Job
from pipeline.submission.verdict import left_in, verdict
from tests.support.rayjobs import result_of


def job(status: str, **more: Any) -> Job:
    return Job("first", "", status, "python", has_ended=True, **more)


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        ("ConfigError: --run: is required\n", "ConfigError: --run: is required"),
        ("INFO begins\nDatasetError: a\nRunError: b\n12:00 INFO ends\n", "RunError: b"),
        ("RunError: b:\n  one\n  two\nat last", "RunError: b:\n  one\n  two"),
        ("Traceback:\n  File\nray.exceptions.RayTaskError: x", "ray.exceptions.RayTaskError: x"),
        ("all is well", ""),
        ("", ""),
    ],
)
def test_the_cause_is_the_last_error_that_was_printed(output: str, cause: str) -> None:
    assert cause_of(output) == cause


def test_without_any_error_in_its_output_the_places_sentence_stands() -> None:
    said = verdict(
        job("FAILED", exit_code=137, message="failed with exit code 137"), Printed(), None
    )
    assert (said.message, said.exit_code) == ("exit code 137: failed with exit code 137", 1)


def test_rays_message_is_split_where_the_log_begins() -> None:
    assert said_and_printed("died, last available logs (truncated to 9 chars):\na\nb:\nc") == (
        "died", "a\nb:\nc"
    )  # fmt: skip
    assert said_and_printed("Job finished successfully.") == ("Job finished successfully.", "")


@pytest.mark.parametrize("reason", ["stopped", "drained", "a later one"])
def test_every_reason_but_done_is_told_whoever_printed_it(reason: str) -> None:
    ended = verdict(job("SUCCEEDED"), Printed({"reason": reason, "steps": 7}), None)
    assert (ended.status, ended.exit_code) == ("STOPPED", 5)
    assert "step 7" in ended.message
    done = verdict(job("SUCCEEDED"), Printed({"reason": "done", "steps": 7}), None)
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0)
    other_job = verdict(job("SUCCEEDED"), Printed({"ok": True}), None)
    assert other_job.status == "SUCCEEDED"


def test_why_a_job_stopped_is_not_guessed_where_nothing_of_its_output_can_be_read() -> None:
    unseen = verdict(job("STOPPED", message="Job was stopped."), printed(""), None)
    assert (unseen.status, unseen.exit_code) == ("STOPPED", 5)
    assert "exit code 2 or 3" in unseen.message
    seen = verdict(job("STOPPED", message="Job was stopped."), printed("it has begun\n"), None)
    assert seen.message == "Job was stopped."


def test_who_had_itself_stopped_has_failed_and_who_was_stopped_has_not() -> None:
    said = f"ConfigError: no such flag\n{NOT_REPEATED}2\n"
    failed = verdict(job("STOPPED"), printed(said), None)
    assert (failed.status, failed.exit_code) == ("FAILED", 2)
    assert failed.message == "exit code 2: ConfigError: no such flag"
    lost = verdict(job("STOPPED"), printed(f"UndeliveredError: x\n{NOT_REPEATED}1\n"), None)
    assert (lost.status, lost.exit_code) == ("FAILED", 1)
    many = verdict(job("STOPPED"), printed(f'{{"packed": 3}}\n{NOT_REPEATED}3\n'), None)
    assert (many.status, many.exit_code, many.result) == ("QUARANTINED", 3, {"packed": 3})
    stopped = verdict(job("STOPPED"), printed("ConfigError: said on the way\n"), None)
    assert (stopped.status, stopped.exit_code) == ("STOPPED", 5)


def test_a_folder_that_says_what_it_said_before_tells_of_no_end(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    assert left_in(run, "first", None) is None
    start = run.claim()
    run.end(start, result_of(run, "stopped", 3))
    ended = run.ended()
    assert ended is not None
    before = ended.to_json()
    assert left_in(run, "first", before) is None
    verdict = left_in(run, "first", None)
    assert verdict is not None
    assert verdict.status == "STOPPED"
    run.claim()
    assert left_in(run, "first", None) is None  # The newest start goes on.
    run.end(Start(2), result_of(run, "done", 9))
    run.finish(result_of(run, "done", 9))
    verdict = left_in(run, "first", before)
    assert verdict is not None
    assert verdict.status == "SUCCEEDED"
