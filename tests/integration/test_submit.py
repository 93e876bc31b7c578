"""`jobs.submit` against a real Ray head with its token: what it says is what became of the job."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.submission.driver_log import DriverLog
from pipeline.submission.own_job import NOT_REPEATED
from pipeline.submission.ray_jobs import RayJobs
from pipeline.web import ask
from tests.servers.fault_proxy import FaultProxy, Rule
from tests.servers.ray_head import TOKEN, RayHead
from tests.support.submitting import ended, python, sleeping, submit, until


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    head = RayHead()
    head.start()
    yield head
    head.stop()


@pytest.fixture
def to_head(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> RayHead:
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return head


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [(0, "SUCCEEDED", 0), (1, "FAILED", 1), (2, "FAILED", 2), (3, "QUARANTINED", 3),
     (137, "FAILED", 1)],
)  # fmt: skip
def test_the_exit_code_is_the_jobs_own_fate(
    to_head: RayHead, tmp_path: Path, code: int, status: str, expected: int
) -> None:
    source = f'import sys; print("said"); sys.exit({code})'
    returned, told = ended(submit(tmp_path, *python(source)))
    assert (returned, told["status"]) == (expected, status)
    assert "said" in (tmp_path / "log").read_text()


def test_a_job_whose_driver_was_lost_with_its_supervisor_did_not_fail_but_is_lost(
    to_head: RayHead, tmp_path: Path
) -> None:
    # As when the driver's node dies: nobody has seen how it ended.
    source = (
        "import os, pathlib, signal, time; pid = os.getppid(); proc = pathlib.Path('/proc')\n"
        "while 'Job' + 'Supervisor' not in (proc / str(pid) / 'cmdline').read_text():\n"
        "    pid = int((proc / str(pid) / 'stat').read_text().rpartition(')')[2].split()[1])\n"
        "os.kill(pid, signal.SIGKILL); time.sleep(300)"
    )
    returned, told = ended(submit(tmp_path, *python(source)))
    assert (returned, told["status"]) == (4, "LOST")


def test_a_wrong_token_is_wrong_usage_and_stands_in_no_message(
    to_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-secret")
    assert ended(submit(tmp_path, *python("print(1)"))) == (2, {})
    said = (tmp_path / "log").read_text()
    assert "RAY_AUTH_TOKEN" in said
    assert "planted-secret" not in said
    assert TOKEN not in said


def test_a_command_that_its_own_job_refuses_is_never_submitted(
    to_head: RayHead, tmp_path: Path
) -> None:
    before = len(RayJobs(to_head.address).jobs())
    wrong = ("--", "python", "-m", "jobs.train", "--run", "r", "--no-such-flag", "1")
    assert ended(submit(tmp_path, *wrong)) == (2, {})
    assert len(RayJobs(to_head.address).jobs()) == before


def test_under_kuberay_what_can_only_fail_again_is_stopped_which_nobody_repeats(
    to_head: RayHead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """KubeRay makes a new cluster for what has FAILED; a job that is STOPPED is complete for it."""
    wrong = ("env", "RAY_USAGE_STATS_KUBERAY_IN_USE=1", "python", "-m", "jobs.verify", "--sample",
             "3", "--dataset", str(tmp_path))  # fmt: skip
    code, told = ended(submit(tmp_path, "--", *wrong))
    assert (code, told["status"]) == (2, "FAILED")
    assert "ConfigError" in told["message"]
    job = RayJobs(to_head.address).job(told["submission_id"])
    assert job is not None
    assert job.status == "STOPPED"
    # What the container `job-log` of a head would pass on, from Ray's own file.
    DriverLog(to_head.folder, str(tmp_path / "kept")).look(last=True)
    assert f"{NOT_REPEATED}2" in (tmp_path / "kept/0001.log").read_text()
    elsewhere = wrong[2:]
    code, told = ended(submit(tmp_path, "--id", "elsewhere", "--", "env", *elsewhere))
    assert (code, told["status"]) == (2, "FAILED")
    job = RayJobs(to_head.address).job(told["submission_id"])
    assert job is not None
    assert job.status == "FAILED"


def test_the_same_command_twice_is_one_job_and_stopping_it_is_told_to_both(
    to_head: RayHead, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    command = python(sleeping(marker))
    first = submit(tmp_path, *command)
    until(marker.exists, first, tmp_path)
    second = submit(tmp_path, *command)
    until(lambda: "is followed" in (tmp_path / "log").read_text(), second, tmp_path)
    code, told = ended(submit(tmp_path, "--status", *command))
    assert (code, told["status"]) == (0, "RUNNING")
    code, told = ended(submit(tmp_path, "--stop", "--id", told["submission_id"]))
    assert (code, told["status"]) == (0, "STOPPED")
    for follower in (first, second):
        code, told = ended(follower)
        assert (code, told["status"]) == (5, "STOPPED")
    assert marker.read_text() == "started\n"


def test_rays_list_of_jobs_holds_no_secret_and_no_environment(
    to_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    code, told = ended(submit(tmp_path, *python("import os; print(len(os.environ))")))
    assert code == 0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    listed = ask("GET", f"{to_head.address}/api/jobs/", headers=headers).json()
    (mine,) = [job for job in listed if job["submission_id"] == told["submission_id"]]
    assert mine["runtime_env"] in (None, {})
    assert "planted-secret" not in json.dumps(listed)
    assert TOKEN not in json.dumps(listed)


def test_a_dashboard_that_hangs_for_a_while_is_waited_for(
    to_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    process = submit(tmp_path, *python(sleeping(marker)))
    until(marker.exists, process, tmp_path)
    # Its port then takes connections and never answers.
    assert to_head.send(signal.SIGSTOP, "dashboard.py")
    until(lambda: "does not answer" in (tmp_path / "log").read_text(), process, tmp_path)
    (tmp_path / "over").touch()
    to_head.send(signal.SIGCONT, "dashboard.py")
    code, told = ended(process)
    assert (code, told["status"]) == (0, "SUCCEEDED")


def test_answers_that_are_lost_on_the_way_start_no_second_job(
    to_head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    with FaultProxy(to_head.dashboard_port) as proxy:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", proxy.endpoint)
        # The head acts, then the connection is reset before a byte of its answer has come.
        proxy.rules = [
            Rule("^POST", "lose_answer", count=2),
            Rule("^GET /api/jobs/.", "lose_answer", probability=0.4),
        ]
        process = submit(tmp_path, *python(sleeping(marker)))
        until(marker.exists, process, tmp_path)
        until(lambda: "answers again" in (tmp_path / "log").read_text(), process, tmp_path)
        (tmp_path / "over").touch()
        code, told = ended(process)
        assert len(proxy.matching("^POST")) == 3
    assert (code, told["status"]) == (0, "SUCCEEDED")
    assert marker.read_text() == "started\n"


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary", "/metrics"])
def test_without_the_token_the_dashboard_says_nothing(to_head: RayHead, path: str) -> None:
    assert ask("GET", to_head.address + path).status == 401


def test_the_working_tree_is_shipped_without_what_git_ignores(
    to_head: RayHead, tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "shipped.py").write_text("NUMBER = 41")
    (tree / ".gitignore").write_text("data\n")
    (tree / "data").write_text("large")
    subprocess.run(["git", "init", "-q", tree], check=True)
    source = "import os, shipped; assert not os.path.exists('data'); print([shipped.NUMBER + 1])"
    returned, _ = ended(submit(tmp_path, "--ship", str(tree), *python(source)))
    assert returned == 0, (tmp_path / "log").read_text()
    assert "[42]" in (tmp_path / "log").read_text()


def test_what_a_job_prints_is_shown_while_it_runs_byte_for_byte_and_only_once(
    to_head: RayHead, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    # In two parts, neither of which begins or ends with a line's end. Only whole lines are shown
    # before the end: of half of one nobody knows whether it holds a secret.
    more = "print('one' * 2, '', 'two' * 2, sep='\\n', end='', flush=True)"
    last = "\nprint('-' * 3, 'four' * 2, sep='\\n')"
    process = submit(tmp_path, *python(sleeping(marker, more) + last))
    log = tmp_path / "log"
    until(lambda: "oneone\n\n" in log.read_text(), process, tmp_path)
    assert "twotwo" not in log.read_text()
    (tmp_path / "over").touch()
    assert ended(process)[0] == 0
    # On a busy machine the follower may have a word of its own to say in between.
    printed = re.sub(r"\d\d:\d\d:\d\d [A-Z]+ .*\n", "", log.read_text())
    assert printed.count("oneone\n\ntwotwo---\nfourfour\n") == 1


def test_the_fate_of_a_job_is_still_told_when_it_is_asked_for_later(
    to_head: RayHead, tmp_path: Path
) -> None:
    command = python("import json, sys; print('RunError: no luck'); sys.exit(3)")
    _, told = ended(submit(tmp_path, *command))
    for asked in (command, ("--id", told["submission_id"])):
        code, later = ended(submit(tmp_path, "--status", *asked))
        assert (code, later) == (3, told)
    assert told["message"] == "exit code 3: RunError: no luck"
    code, stopped = ended(submit(tmp_path, "--stop", *command))
    assert (code, stopped["status"]) == (3, "QUARANTINED")
    assert "had ended before" in stopped["message"]


@pytest.mark.parametrize("flag", ["--status", "--logs", "--stop"])
def test_a_job_that_nobody_knows_is_named_with_where_to_look(
    to_head: RayHead, tmp_path: Path, flag: Any
) -> None:
    assert ended(submit(tmp_path, flag, "--id", "nobody")) == (1, {})
    (line,) = (tmp_path / "log").read_text().strip().splitlines()
    assert "knows no job nobody. `python -m jobs.submit --list` shows" in line


def test_a_given_id_that_has_been_used_gets_a_number(to_head: RayHead, tmp_path: Path) -> None:
    command = ("--id", "mine", *python("print('again' * 2)"))
    code, told = ended(submit(tmp_path, *command))
    assert (code, told["submission_id"]) == (0, "mine")
    code, told = ended(submit(tmp_path, *command))
    assert (code, told["submission_id"]) == (0, "mine-2")
    assert (tmp_path / "log").read_text().count("againagain\n") == 2
