"""A dashboard that dies midway, a head that is lost: `jobs.submit` says what became of the job."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.ray_head import RayHead
from tests.support.packed_digits import write_digits
from tests.support.submitting import ended, hasty_submit, python, sleeping, submit, until
from tests.support.warm import ROOT

pytestmark = pytest.mark.chaos


@pytest.fixture
def own_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[RayHead]:
    """One that the test may break; its jobs find their MLflow by the environment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    head = RayHead()
    head.start()
    for name, value in head.environment.items():
        monkeypatch.setenv(name, value)
    yield head
    head.stop()


def training(folder: Path, data: Path, run: str, steps: int) -> tuple[str, ...]:
    return (
        "--", "python", "-m", "jobs.train", "--data", str(data), "--run", run, "--workers", "1",
        "--storage", str(folder / "runs"), "--steps", str(steps), "--global-batch-size", "64",
        "--image-size", "8", "--channels", "1", "--checkpoint-every", "20",
        "--model.kind", "mlp",
        "--model.width", "8",
    )  # fmt: skip


def test_a_training_is_stopped_by_its_flag_and_told_by_its_folder_when_the_head_dies(
    own_head: RayHead, tmp_path: Path
) -> None:
    data = write_digits(tmp_path, 200)
    command = training(tmp_path, data, "long", 1_000_000)
    first = submit(tmp_path, *command)
    until(lambda: any((tmp_path / "runs/long").glob("checkpoints/step*.json")), first, tmp_path)
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
    own_head: RayHead, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    command = python(sleeping(marker))
    patient = submit(tmp_path, "--resubmit-on-head-loss", "1", *command)
    until(marker.exists, patient, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    hasty = hasty_submit(other, *command)
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


@pytest.mark.parametrize(
    "secret",
    [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 48}],
)
def test_who_has_not_the_token_does_not_join_the_cluster(
    own_head: RayHead, secret: dict[str, Any], tmp_path: Path
) -> None:
    join = f"import ray; ray.init(address='127.0.0.1:{own_head.port}'); print('joined')"

    def joined(environment: dict[str, str]) -> bool:
        known = {**os.environ, **environment, "HOME": str(tmp_path)}
        found = subprocess.run(
            [sys.executable, "-c", join], env=known, capture_output=True, text=True
        )
        return "joined" in found.stdout

    assert not joined(secret)
    assert joined(own_head.environment)
