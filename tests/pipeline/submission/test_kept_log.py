"""What drivers print reaches stdout and storage, and is read there when their cluster is gone."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.submit import main
from pipeline import storage
from pipeline.config import SubmitConfig
from pipeline.submission import kept_log
from pipeline.submission.driver_log import DriverLog, folder_of
from pipeline.submission.kept_log import Kept, KeptLog, LogReader
from pipeline.submission.log_tail import LogTail
from pipeline.submission.own_job import NOT_REPEATED
from pipeline.submission.place import Job, Output
from tests.k8s.manifests import ROOT
from tests.servers import rgw
from tests.support.rayjobs import DENIED, RUNNING, SUCCEEDED, failed, message_of, submit

RESULT = {"encoded": 3, "complete": True}


def driver_prints(sessions: Path, text: str, job: str = "a") -> None:
    """As Ray stores it, in the session of the day."""
    logs = sessions / "session_2026-11-29_01-00-00_000000_1/logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"job-driver-{job}.log").open("a") as file:
        file.write(text)


def kept(server: Any, cluster: str, text: str, day: int = 1) -> None:
    """What the container `job-log` of a head of `cluster` has stored."""
    folder = server.folder.parent / "job-logs/first" / f"202611{day:02d}T010000Z-{cluster}-head-x7"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0001.log").write_text(text)


def of_cluster(cluster: str, state: dict[str, Any]) -> dict[str, Any]:
    return state | {"rayClusterName": cluster}


def now() -> str:
    """As Kubernetes writes a time."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_log, "EVERY_SECONDS", 0)
    monkeypatch.setattr("pipeline.submission.kubernetes_jobs.LAST_SECONDS", 4)


def test_whole_lines_are_passed_on_as_they_come_and_the_last_one_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = DriverLog(tmp_path / "ray", str(tmp_path / "kept"))
    log.look()
    assert not (tmp_path / "kept").exists()
    driver_prints(tmp_path / "ray", "one\ntw")
    log.look()
    assert capsys.readouterr().out == "one\n"
    assert (tmp_path / "kept/0001.log").read_text() == "one\n"
    driver_prints(tmp_path / "ray", "o\nthree")
    log.look(last=True)
    assert capsys.readouterr().out == "two\nthree"
    assert (tmp_path / "kept/0001.log").read_text() == "one\ntwo\nthree"


def test_long_logs_are_kept_in_parts_of_which_the_first_and_the_newest_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.submission.driver_log.PART_BYTES", 10)
    monkeypatch.setattr("pipeline.submission.driver_log.KEPT_PARTS", 3)
    log = DriverLog(tmp_path / "ray", str(tmp_path / "logs/job/20261129T010000Z-c-head-x"))
    for number in range(6):
        driver_prints(tmp_path / "ray", f"line number {number}\n")
        log.look()
    read = KeptLog(str(tmp_path / "logs/job"), "c").read()
    assert read.text.splitlines() == [f"line number {n}" for n in (0, 4, 5)]


def test_a_follower_shows_each_line_once_and_reads_no_full_part_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a log so long that the middle of what is kept goes."""
    monkeypatch.setattr("pipeline.submission.driver_log.PART_BYTES", 10)
    monkeypatch.setattr("pipeline.submission.driver_log.KEPT_PARTS", 6)
    monkeypatch.setattr("pipeline.submission.log_tail._BYTES_PER_SECOND", 1e9)
    monkeypatch.setattr(kept_log, "END_CHARACTERS", 20)
    folder = tmp_path / "logs/job/20261129T010000Z-c-head-x"
    log, reader = DriverLog(tmp_path / "ray", str(folder)), LogReader()
    texts: list[str] = []

    def output(job: Job) -> Output:
        found = reader.read(KeptLog(str(tmp_path / "logs/job"), "c"))
        texts.append(found.text)
        return Output(found.text, whole=True, source=found.folder, before=found.before)

    place: Any = SimpleNamespace(output=output)
    tail = LogTail(place)
    for number in range(20):
        driver_prints(tmp_path / "ray", f"line number {number}\n")
        log.look()
        if number % 2 == 1:
            tail.show(Job("job", "u", "RUNNING", "true", has_ended=False))
            for part in sorted(folder.glob("*.log"))[:-1]:
                part.write_text("a part that was read already")
    shown = capsys.readouterr().err
    assert shown == "".join(f"line number {n}\n" for n in range(20))
    assert max(map(len, texts)) < 20 + 4 * len("line number 10\n")


def test_a_secret_that_a_driver_prints_is_passed_on_nowhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = DriverLog(tmp_path / "ray", str(tmp_path / "kept"))
    driver_prints(tmp_path / "ray", "postgresql://mlflow:planted-secret@postgres/x\n")
    log.look()
    assert "planted" not in capsys.readouterr().out + (tmp_path / "kept/0001.log").read_text()


def test_a_pods_folder_sorts_by_time_and_names_the_pod() -> None:
    environment = {"JOB_LOGS": "s3://runs/job-logs/nightly", "HOSTNAME": "nightly-abc-head-x"}
    first = folder_of(environment, datetime(2026, 9, 30, 23, 59, tzinfo=UTC))
    assert first == "s3://runs/job-logs/nightly/20260930T235900Z-nightly-abc-head-x"
    later = folder_of(environment, datetime(2026, 10, 1, tzinfo=UTC))
    assert later is not None
    assert first < later
    assert folder_of({}, datetime(2026, 10, 1, tzinfo=UTC)) is None


def test_the_container_stores_all_of_it_before_it_ends(
    s3_server: rgw.S3Server, tmp_path: Path
) -> None:
    folder = f"{s3_server.bucket()}/job-logs/first"
    source = (
        "import pathlib, pipeline.submission.driver_log as d\n"
        f"d.SESSIONS = pathlib.Path({str(tmp_path)!r}); d.main()"
    )
    environment = os.environ | {"JOB_LOGS": folder, "HOSTNAME": "c-head-x", "PYTHONPATH": str(ROOT)}
    driver_prints(tmp_path, "begins\n")
    with subprocess.Popen(
        [sys.executable, "-c", source], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        driver_prints(tmp_path, json.dumps(RESULT))
        process.send_signal(signal.SIGTERM)
        assert json.loads(process.communicate(timeout=60)[0]) == RESULT
    assert process.returncode == 0
    assert KeptLog(folder, "c").read().text == f"begins\n{json.dumps(RESULT)}"


def test_a_job_that_is_no_training_keeps_its_result_and_is_shown_while_it_goes_on(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["first"] = [of_cluster("c", RUNNING)] * 3 + [of_cluster("c", SUCCEEDED)]
    kept(server, "c", f"12:00:01 INFO jobs: begins\n{json.dumps(RESULT)}\n")
    outcome = submit()
    assert outcome.result["result"] == RESULT
    assert "INFO jobs: begins" in capsys.readouterr().err


@pytest.mark.parametrize("before", ["", "12:00:01 INFO jobs: begins\n"])
def test_the_last_lines_of_a_job_that_ended_just_now_are_waited_for(
    server: Any, before: str
) -> None:
    """A brief job has ended before any of its lines are stored."""
    ended = {"endTime": now()}
    server.script["first"] = [of_cluster("c", SUCCEEDED | ended)] * 9
    if before:
        kept(server, "c", before)
    later = threading.Timer(0.5, kept, (server, "c", f"{before}{json.dumps(RESULT)}\n"))
    later.start()
    assert submit().result["result"] == RESULT
    later.join()


@pytest.mark.parametrize(("cluster", "ended"), [("c", "2026-11-29T01:00:00Z"), ("", "")])
def test_nothing_is_waited_for_of_a_job_that_ended_long_ago_or_had_no_head(
    server: Any, monkeypatch: pytest.MonkeyPatch, cluster: str, ended: str
) -> None:
    never = SimpleNamespace(monotonic=time.monotonic, sleep=pytest.fail)
    monkeypatch.setattr(kept_log, "time", never)
    state = SUCCEEDED | {"endTime": ended or now(), "rayClusterName": cluster}
    server.script["first"] = [state] * 9
    assert submit().result["result"] is None


def test_a_usage_error_that_kuberay_did_not_repeat_is_told_as_one(server: Any) -> None:
    stopped = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
    server.script["first"] = [of_cluster("c", RUNNING), of_cluster("c", stopped)]
    kept(server, "c", f"ConfigError: s3://d holds no dataset\n{NOT_REPEATED}2\n")
    outcome = submit()
    assert (outcome.exit_code, outcome.result["status"]) == (2, "FAILED")
    assert "s3://d holds no dataset" in message_of(outcome)


def test_another_try_is_shown_from_its_beginning(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["first"] = (
        [of_cluster("one", RUNNING)] * 2
        + [of_cluster("two", RUNNING)] * 2
        + [of_cluster("two", SUCCEEDED)] * 2
    )
    kept(server, "one", "the first try prints a long line\n", 1)
    kept(server, "two", f"again\n{json.dumps(RESULT)}\n", 2)
    assert submit().result["result"] == RESULT
    said = capsys.readouterr().err
    assert said.index("the first try prints a long line") < said.index("again\n")


def test_status_and_logs_tell_of_the_tries_before_and_of_no_earlier_job(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(detach=True)
    server.objects["first"]["metadata"]["creationTimestamp"] = "2026-11-02T00:00:00Z"
    kept(server, "of-before", "ValueError: of a job before\n", 1)
    kept(server, "one", "its first head\n", 2)
    kept(server, "one", DENIED, 3)
    kept(server, "two", "again\n", 4)
    server.script["first"] = [of_cluster("two", RUNNING | {"failed": 1})] * 9
    status = main(SubmitConfig(kubernetes=True, id="first", status=True))
    assert message_of(status) == (
        "try 1 of 3 failed: AccessDeniedError: s3://d: looking it up was refused (403)"
    )
    capsys.readouterr()
    main(SubmitConfig(kubernetes=True, id="first", logs=True))
    assert capsys.readouterr().out == (
        f"==> an earlier try <==\nits first head\n{DENIED}==> the newest try <==\nagain\n"
    )


def test_a_try_that_left_no_log_is_told_without_another_ones_cause(server: Any) -> None:
    submit(detach=True)
    kept(server, "one", DENIED, 1)
    server.script["first"] = [of_cluster("three", RUNNING | {"failed": 2})] * 9
    status = main(SubmitConfig(kubernetes=True, id="first", status=True))
    assert message_of(status) == "try 2 of 3 failed: no log of it can be read"


def test_logs_are_read_after_the_rayjob_itself_is_gone(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(server, "one", "of the night before\n", 1)
    kept(server, "two", DENIED, 2)
    main(SubmitConfig(kubernetes=True, id="first", logs=True))
    assert capsys.readouterr().out == DENIED


def test_by_a_name_alone_logs_are_looked_for_wherever_a_template_puts_them(
    server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept(server, "two", DENIED, 2)
    for template in server.others["rayjobtemplates"]:
        head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        if template["metadata"]["name"] != "train":  # That of `first`, which a name does not tell.
            head["initContainers"][0]["env"][0]["value"] = str(tmp_path / "elsewhere")
    main(SubmitConfig(kubernetes=True, id="first", logs=True))
    assert capsys.readouterr().out == DENIED


def test_storage_that_cannot_be_reached_from_here_is_said_once_and_ends_nothing(
    server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script["first"] = [of_cluster("c", RUNNING)] * 4 + [of_cluster("c", failed(1))]
    monkeypatch.setattr(kept_log, "_PATIENCE", storage.RetryPolicy(deadline_seconds=0.2))
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:9"), ("ACCESS_KEY_ID", "nobody"),
                        ("SECRET_ACCESS_KEY", "planted-secret")):  # fmt: skip
        monkeypatch.setenv(f"AWS_{name}", value)
    for template in server.others["rayjobtemplates"]:
        head = template["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        head["initContainers"][0]["env"][0]["value"] = "s3://runs/job-logs"
    with caplog.at_level(logging.WARNING):
        outcome = submit()
    # KubeRay's own word of it is left.
    assert "AccessDeniedError" in message_of(outcome)
    assert caplog.text.count("the job's log can't be read from here") == 1


def test_what_is_read_is_of_this_jobs_cluster_and_not_of_one_before(server: Any) -> None:
    kept(server, "old", f"{json.dumps({'encoded': 99})}\n", 1)
    server.script["first"] = [of_cluster("new", SUCCEEDED)]
    assert submit().result["result"] is None
    folder = str(server.folder.parent / "job-logs/first")
    assert KeptLog(folder, "old").read().text
    assert KeptLog(folder, "new").read() == Kept()
    assert list(storage.list_objects(folder))
