"""`jobs.submit` against a real Ray head with its token: what it says is what became of the job."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.edges.ray_jobs import RayJobs
from pipeline.edges.web import ask
from tests.digits import write_digits
from tests.killing import ROOT, start_job
from tests.servers.ray_head import TOKEN, RayHead


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    head = RayHead()
    head.start()
    yield head
    head.stop()


@pytest.fixture
def own_head(monkeypatch) -> Iterator[RayHead]:
    """One that the test may break."""
    head = RayHead()
    head.start()
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    yield head
    head.stop()


@pytest.fixture
def to_head(head, monkeypatch) -> RayHead:
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    return head


def submit(folder: Path, *arguments: str) -> subprocess.Popen:
    return start_job(folder, "jobs.submit", "--poll-seconds", "0.3", *arguments)


def ended(process: subprocess.Popen) -> tuple[int, dict]:
    out, _ = process.communicate(timeout=300)
    return process.returncode, json.loads(out.splitlines()[-1]) if out else {}


def until(condition: Callable[[], bool], process: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)


def python(source: str) -> tuple[str, ...]:
    return ("--", "python", "-c", source)


def sleeping(marker: Path, more: str = "") -> str:
    """A job that notes each start of it, and goes on until the file `over` lies beside that."""
    return (
        f"import pathlib, time; m = pathlib.Path({str(marker)!r}); {more}\n"
        "open(m, 'a').write('started\\n')\n"
        "while not m.with_name('over').exists(): time.sleep(0.1)"
    )


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [(0, "SUCCEEDED", 0), (1, "FAILED", 1), (2, "FAILED", 2), (3, "QUARANTINED", 3),
     (137, "FAILED", 1)],
)  # fmt: skip
def test_the_exit_code_is_the_jobs_own_fate(to_head, tmp_path, code, status, expected):
    source = f'import sys; print("said"); sys.exit({code})'
    returned, told = ended(submit(tmp_path, *python(source)))
    assert (returned, told["status"]) == (expected, status)
    assert "said" in (tmp_path / "log").read_text()


def test_a_wrong_token_is_wrong_usage_and_stands_in_no_message(to_head, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-secret")
    assert ended(submit(tmp_path, *python("print(1)"))) == (2, {})
    said = (tmp_path / "log").read_text()
    assert "RAY_AUTH_TOKEN" in said
    assert "planted-secret" not in said
    assert TOKEN not in said


def test_a_command_that_its_own_job_refuses_is_never_submitted(to_head, tmp_path):
    before = len(RayJobs(to_head.address).jobs())
    wrong = ("--", "python", "-m", "jobs.train", "--run", "r", "--no-such-flag", "1")
    assert ended(submit(tmp_path, *wrong)) == (2, {})
    assert len(RayJobs(to_head.address).jobs()) == before


def test_the_same_command_twice_is_one_job_and_stopping_it_is_told_to_both(to_head, tmp_path):
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


def test_rays_list_of_jobs_holds_no_secret_and_no_environment(to_head, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    code, told = ended(submit(tmp_path, *python("import os; print(len(os.environ))")))
    assert code == 0
    headers = {"Authorization": f"Bearer {TOKEN}"}
    listed = ask("GET", f"{to_head.address}/api/jobs/", headers=headers).json()
    (mine,) = [job for job in listed if job["submission_id"] == told["submission_id"]]
    assert mine["runtime_env"] in (None, {})
    assert "planted-secret" not in json.dumps(listed)
    assert TOKEN not in json.dumps(listed)


def test_a_dashboard_that_hangs_for_a_while_is_waited_for(to_head, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    process = submit(tmp_path, "--timeout-seconds", "5", *python(sleeping(marker)))
    until(marker.exists, process, tmp_path)
    # Its port then takes connections and never answers.
    assert to_head.send(signal.SIGSTOP, "dashboard.py")
    until(lambda: "does not answer" in (tmp_path / "log").read_text(), process, tmp_path)
    (tmp_path / "over").touch()
    to_head.send(signal.SIGCONT, "dashboard.py")
    code, told = ended(process)
    assert (code, told["status"]) == (0, "SUCCEEDED")


def test_the_working_tree_is_shipped_without_what_git_ignores(to_head, tmp_path):
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


def training(folder: Path, data: Path, run: str, steps: int) -> tuple[str, ...]:
    return (
        "--", "python", "-m", "jobs.train", "--data", str(data), "--run", run, "--workers", "1",
        "--storage", str(folder / "runs"), "--steps", str(steps), "--global-batch-size", "64",
        "--image-size", "8", "--channels", "1", "--checkpoint-every", "20",
        "--tracking.mlflow-uri", f"sqlite:///{folder}/mlflow.db", "--model.kind", "mlp",
        "--model.width", "8",
    )  # fmt: skip


def test_a_training_is_stopped_by_its_flag_and_told_by_its_folder_when_the_head_dies(
    own_head, tmp_path
):
    data = write_digits(tmp_path, 200)
    command = training(tmp_path, data, "long", 1_000_000)
    first = submit(tmp_path, *command)
    until(lambda: any((tmp_path / "runs/long").glob("checkpoints/*.json")), first, tmp_path)
    code, told = ended(submit(tmp_path, "--stop", *command))
    assert (code, told["status"]) == (0, "STOPPED")
    code, told = ended(first)
    assert (code, told["status"], told["result"]["reason"]) == (5, "STOPPED", "stopped")
    # The dashboard dies midway; the job goes on, and its folder tells the end of it.
    command = training(tmp_path, data, "short", 500)
    second = submit(tmp_path, *command)
    until((tmp_path / "runs/short/attempts").is_dir, second, tmp_path)
    assert own_head.send(signal.SIGKILL, "dashboard.py")
    code, told = ended(second)
    assert (code, told["status"], told["result"]["steps"]) == (0, "SUCCEEDED", 500), told
    # The whole head dies: log and end are still there, in the run's folder.
    own_head.kill()
    code, told = ended(submit(tmp_path, "--status", *command))
    assert (code, told["status"], told["result"]["steps"]) == (0, "SUCCEEDED", 500)
    asked = [sys.executable, "-m", "jobs.submit", "--logs", *command]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "rank 0 of 1 starts" in found.stdout


def test_a_head_that_is_lost_is_told_and_its_job_submitted_to_the_next_one_if_asked(
    own_head, tmp_path
):
    marker = tmp_path / "marker"
    command = python(sleeping(marker))
    patient = submit(tmp_path, "--resubmit-on-head-loss", "1", "--lost-seconds", "120", *command)
    until(marker.exists, patient, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    hasty = submit(other, "--lost-seconds", "3", *command)
    until(lambda: "is followed" in (other / "log").read_text(), hasty, other)
    own_head.kill()
    code, told = ended(hasty)
    assert (code, told["status"]) == (4, "LOST")
    own_head.start()
    until(lambda: marker.read_text() == "started\nstarted\n", patient, tmp_path)
    assert "submitted again" in (tmp_path / "log").read_text()
    (tmp_path / "over").touch()
    code, told = ended(patient)
    assert (code, told["status"]) == (0, "SUCCEEDED")
