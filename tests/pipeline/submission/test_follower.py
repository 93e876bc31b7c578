"""What a submission says is what became of the job, whoever else acts meanwhile."""

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from jobs.submit import main
from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.errors import (
    AccessDeniedError,
    ClusterError,
    ConfigError,
    NotNowError,
    UnreachableError,
)
from pipeline.runs.run import Run
from pipeline.submission import follower, log_tail, narrator
from tests.servers.api_server import TOKEN
from tests.support.rayjobs import (
    DENIED,
    HEAD_LOST,
    RUNNING,
    SUCCEEDED,
    ended,
    failed,
    followed,
    message_of,
    result_in,
    run_of,
    said_of_exit,
    submit,
    until,
)


class Clock:
    """Whose hours pass in a moment; `at_end` is called once four of them are over."""

    def __init__(self, at_end: Callable[[], object]) -> None:
        self.seconds, self._at_end = 0.0, at_end

    def monotonic(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.seconds > 4 * 3600:
            self._at_end()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The follower's."""

    def give_up() -> None:
        raise AssertionError("still followed after four hours")

    found = Clock(give_up)
    for module in (follower, narrator, log_tail):
        monkeypatch.setattr(module, "time", found)
    return found


@pytest.mark.parametrize(
    ("states", "code", "status"),
    [
        ([RUNNING, SUCCEEDED], 0, "SUCCEEDED"),
        ([RUNNING, failed(1)], 1, "FAILED"),
        ([failed(2)], 2, "FAILED"),
        ([RUNNING, failed(3)], 3, "QUARANTINED"),
        ([RUNNING, HEAD_LOST], 4, "LOST"),
        ([RUNNING, {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}], 5, "STOPPED"),
        ([RUNNING, {"gone": ""}], 5, "STOPPED"),
        ([{"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}], 1, "FAILED"),
        ([{"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"}], 1, "FAILED"),
        ([{"jobDeploymentStatus": "ValidationFailed", "message": "bad"}], 1, "FAILED"),
        ([{}, {"jobDeploymentStatus": "Retrying"}, RUNNING, SUCCEEDED], 0, "SUCCEEDED"),
    ],
)
def test_the_exit_code_is_the_jobs_fate(
    server: Any, clock: Clock, states: list[dict[str, Any]], code: int, status: str
) -> None:
    server.script["first"] = list(states)
    outcome = submit()
    assert (outcome.exit_code, outcome.result["status"]) == (code, status)
    advice = "Submit it again: that joins the job where it runs still, and starts it where"
    assert (advice in message_of(outcome)) == (status == "LOST")


def test_the_whole_command_that_follows_is_told_and_the_log_is_that_of_the_job(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    told = re.fullmatch(r"follow it by `(.*)`", message_of(submit(detach=True, namespace="vae")))
    assert told
    assert told[1] == "python -m jobs.submit --kubernetes --namespace vae --status --id first"
    server.script["first"] = [failed(1)] * 9
    assert submit(logs=True).result == {"submission_id": "first"}
    assert DENIED in capsys.readouterr().out


def test_each_outage_that_a_follower_bears_begins_with_its_own_first_error(clock: Clock) -> None:
    silence, place = follower.Silence(limit_seconds=600), cast("Any", SimpleNamespace(address="x"))
    for _ in range(3):
        assert silence.bears(OSError("refused"))
        clock.seconds += 500
        assert silence.bears(OSError("refused"))
        silence.ends(place)
        clock.seconds += 1000
    assert silence.bears(OSError("refused"))
    clock.seconds += 601
    assert not silence.bears(OSError("refused"))


def test_a_follower_asks_the_api_server_less_often_the_longer_a_job_goes_on(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,160 an hour of each follower were many; a job's end is still told within some seconds."""
    monkeypatch.setattr(SubmitConfig, "poll_seconds", 2.0)
    clock = Clock(lambda: server.script.update(first=[SUCCEEDED]))
    for module in (follower, narrator, log_tail):
        monkeypatch.setattr(module, "time", clock)
    server.script["first"] = [RUNNING] * 5000
    assert submit().exit_code == 0
    assert len(server.requests) < 4 * 500
    assert clock.seconds < 4 * 3600 + 20


@pytest.mark.parametrize("how", ["it is busy", "it knows no rights yet", "its token is refused"])
def test_an_api_server_that_restarts_ends_no_follower(server: Any, how: str) -> None:
    server.script["first"] = [RUNNING] * 20 + [SUCCEEDED]
    thread, outcomes = followed()
    until(lambda: "first" in server.objects)
    if how == "it is busy":
        server.refuse_with = "ServiceUnavailable"
    elif how == "it knows no rights yet":
        server.is_ready = False
    else:
        server.tokens = set()
    time.sleep(0.5)
    server.refuse_with, server.is_ready, server.tokens = None, True, {TOKEN}
    thread.join()
    assert outcomes[0].exit_code == 0


@pytest.mark.parametrize("resubmit", [0, 3])
@pytest.mark.parametrize("what", ["rights", "token"])
def test_a_follower_whose_rights_are_taken_for_good_says_lost_not_wrong_usage(
    server: Any, monkeypatch: pytest.MonkeyPatch, what: str, resubmit: int
) -> None:
    monkeypatch.setattr(SubmitConfig, "lost_seconds", 0.5)
    server.script["first"] = [RUNNING] * 2000
    thread, outcomes = followed(resubmit_on_head_loss=resubmit)
    until(lambda: "first" in server.objects)
    if what == "rights":
        server.rights["rayjobs"] = []
    else:
        server.tokens = set()
    thread.join()
    assert (outcomes[0].exit_code, outcomes[0].result["status"]) == (4, "LOST")
    assert message_of(outcomes[0]).startswith("it could not be looked at for 0.5 s, and may well")
    assert {"rights": "cannot get", "token": "log in again"}[what] in message_of(outcomes[0])
    assert "no answer" not in message_of(outcomes[0])


@pytest.mark.parametrize(
    ("error", "now"),
    [
        (UnreachableError("no answer"), "answers again"),
        (NotNowError("exceeded quota"), "refuses it no more"),
        (ConfigError("log in again"), "refuses it no more"),
    ],
)
def test_what_passed_is_named_for_what_it_was(
    caplog: pytest.LogCaptureFixture, error: Exception, now: str
) -> None:
    place: Any = SimpleNamespace(address="Kubernetes, namespace vae")
    silence = follower.Silence(300)
    with caplog.at_level("INFO"):
        silence.ends(place)
        assert caplog.text == ""
        assert silence.bears(error)
        silence.ends(place)
        silence.ends(place)
    assert caplog.messages[1:] == [f"Kubernetes, namespace vae {now}"]


def test_the_reason_of_a_failure_is_told_and_its_output_shown(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["first"] = [RUNNING, failed(1)]
    message = submit().result["message"]
    assert message == "exit code 1: AccessDeniedError: s3://d: looking it up was refused (403)"
    assert DENIED in capsys.readouterr().err


def test_status_and_logs_tell_the_reason_after_the_cluster_is_gone(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["first"] = [failed(1)] * 9
    submit()
    found = main(SubmitConfig(kubernetes=True, id="first", status=True))
    assert (found.exit_code, found.result["status"]) == (1, "FAILED")
    assert "AccessDeniedError" in message_of(found)
    capsys.readouterr()
    main(SubmitConfig(kubernetes=True, id="first", logs=True))
    assert DENIED in capsys.readouterr().out


def test_logs_of_a_training_that_never_began_are_its_drivers_last_words(
    server: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["first"] = [failed(1)] * 9
    submit(*train)
    capsys.readouterr()
    submit(*train, logs=True)
    assert DENIED in capsys.readouterr().out


def test_logs_that_nobody_kept_are_said_to_be_nowhere(server: Any) -> None:
    submit(detach=True)
    server.script["first"] = [RUNNING] * 9
    with pytest.raises(ClusterError, match="job-driver"):
        submit(logs=True)


def test_each_try_is_numbered_and_its_cause_told_while_kuberay_tries_again(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    retrying = {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "failed": 1,
                "message": said_of_exit(1)}  # fmt: skip
    again = {"jobDeploymentStatus": "Initializing", "failed": 1}
    server.script["first"] = [RUNNING, retrying, again, {**RUNNING, "failed": 1}, SUCCEEDED]
    with caplog.at_level("INFO"):
        assert submit().exit_code == 0
    assert "try 1 of 3 failed, and it is tried again: AccessDeniedError: s3://d" in caplog.text
    assert "INITIALIZING, try 2 of 3" in caplog.text
    assert "RUNNING, try 2 of 3" in caplog.text


def test_stopping_a_job_without_a_run_deletes_its_rayjob(server: Any) -> None:
    submit(detach=True)
    server.script["first"] = [RUNNING]
    assert submit(stop=True).result["status"] == "STOPPED"
    assert "first" not in server.objects


@pytest.mark.parametrize("named_by", ["its command", "its id alone"])
def test_a_training_is_stopped_by_its_flag_and_keeps_its_checkpoint(
    server: Any, train: Any, named_by: str
) -> None:
    submit(*train, detach=True)
    server.script["first"] = [RUNNING] * 20 + [SUCCEEDED] * 9
    flag = Path(run_of(train).path("STOP"))
    command = train if named_by == "its command" else ()
    stopping = SubmitConfig(kubernetes=True, id="first", command=command,
                            stop=True)  # fmt: skip
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(main(stopping)))
    thread.start()
    until(flag.exists)
    ended(train, "stopped", 780)
    thread.join()
    assert (outcomes[0].exit_code, outcomes[0].result["status"]) == (0, "STOPPED")
    assert "at step 780, where it left a checkpoint" in message_of(outcomes[0])
    assert "first" in server.objects


def test_a_training_that_made_its_last_step_meanwhile_was_not_stopped(
    server: Any, train: Any
) -> None:
    submit(*train, detach=True)
    server.script["first"] = [RUNNING, RUNNING, SUCCEEDED]
    ended(train, "done", 1000)
    outcome = submit(*train, stop=True)
    assert (outcome.exit_code, outcome.result["status"]) == (0, "SUCCEEDED")
    assert "checkpoint" not in message_of(outcome)


def test_a_training_that_fails_while_it_is_stopped_left_no_checkpoint(
    server: Any, train: Any
) -> None:
    submit(*train, detach=True)
    server.script["first"] = [RUNNING, RUNNING, failed(1), failed(1)]
    outcome = submit(*train, stop=True)
    assert (outcome.exit_code, outcome.result["status"]) == (1, "FAILED")
    assert "AccessDeniedError" in message_of(outcome)


def test_a_training_that_does_not_stop_is_deleted_and_may_lose_steps(
    server: Any, train: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(SubmitConfig, "stop_seconds", 0.3)
    monkeypatch.setattr(follower, "_PATIENT_SECONDS", 0.0)
    caplog.set_level("INFO")
    submit(*train, detach=True)
    server.script["first"] = [RUNNING] * 200
    outcome = submit(*train, stop=True)
    assert "first is still ending after 0 s, and is waited for until 0 s are over" in caplog.text
    assert outcome.result["status"] == "STOPPED"
    assert "whether it still left a last checkpoint" in message_of(outcome)
    assert "first" not in server.objects


def test_a_submitter_who_may_not_write_to_the_run_stops_it_all_the_same(
    server: Any, train: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit(*train, detach=True)
    server.script["first"] = [RUNNING] * 200

    def denied(url: str, data: bytes) -> None:
        raise AccessDeniedError(f"{url}: writing was refused")

    monkeypatch.setattr(storage, "publish", denied)
    outcome = submit(*train, stop=True)
    assert "writing was refused" in caplog.text
    assert "whether it still left a last checkpoint" in message_of(outcome)
    assert "first" not in server.objects


@pytest.mark.parametrize("reason", ["stopped", "drained"])
def test_a_training_that_was_stopped_has_not_succeeded(
    server: Any, train: Any, reason: str
) -> None:
    server.script["first"] = [RUNNING] * 40 + [SUCCEEDED] * 3
    thread, outcomes = followed(*train)
    until(lambda: "first" in server.objects)
    ended(train, reason, 2149)
    thread.join()
    assert (outcomes[0].exit_code, outcomes[0].result["status"]) == (5, "STOPPED")
    assert message_of(outcomes[0]).startswith(f"{reason} at step 2149")
    assert result_in(outcomes[0])["steps"] == 2149
    assert submit(*train, status=True).exit_code == 5


def test_the_end_of_an_earlier_start_is_not_taken_for_the_newest_ones(
    server: Any, train: Any
) -> None:
    ended(train, "done", 100)
    server.script["first"] = [RUNNING] * 40 + [SUCCEEDED] * 3
    thread, outcomes = followed(*train)
    until(lambda: "first" in server.objects)
    ended(train, "stopped", 150, number=2)
    thread.join()
    assert (outcomes[0].exit_code, result_in(outcomes[0])["steps"]) == (5, 150)


def test_a_training_whose_folder_cannot_be_seen_is_not_said_to_have_made_its_last_step(
    server: Any, train: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(run: Run) -> None:
        raise AccessDeniedError("s3://runs: looking it up was refused (403)")

    monkeypatch.setattr(Run, "ended", denied)
    server.script["first"] = [RUNNING, SUCCEEDED]
    outcome = submit(*train)
    assert "can't be seen from here" in caplog.text.partition("RUNNING")[0]
    assert "whether it made its last step" in message_of(outcome).lower()


def test_a_training_that_finished_before_its_head_was_lost_has_succeeded(
    server: Any, train: Any
) -> None:
    server.script["first"] = [RUNNING] * 40 + [HEAD_LOST]
    thread, outcomes = followed(*train)
    until(lambda: "first" in server.objects)
    ended(train, "done", 1000)
    thread.join()
    assert (outcomes[0].exit_code, result_in(outcomes[0])["elbo"]) == (0, -1.0)


def test_the_logs_of_a_training_are_those_of_its_newest_start(
    server: Any, train: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(train)
    for number, text in ((1, "old"), (2, "new")):
        run.claim()
        storage.publish(run.path("logs", f"{number:06d}.000-rank0.log"), text.encode())
    assert list(follower.logs_in(run, 1)) == ["==> 000001.000-rank0.log <==\nold"]
    submit(*train, detach=True)
    submit(*train, logs=True)
    assert capsys.readouterr().out == "==> 000002.000-rank0.log <==\nnew\n"
    server.objects.clear()
    submit(*train, logs=True)  # Its RayJob is gone, its run is not.
    assert "new" in capsys.readouterr().out


def test_logs_of_a_run_without_any_start_are_no_empty_success(server: Any, train: Any) -> None:
    with pytest.raises(ClusterError, match="knows no job first"):
        submit(*train, logs=True)
