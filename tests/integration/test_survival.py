"""`jobs.train` or a worker of it is killed by SIGKILL; the same command ends with the same bits."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.support.killing import descendants, finish, kill_all, start_job
from tests.support.packed_digits import write_digits

STEPS = 300
COMMAND = (
    "--steps", str(STEPS), "--global-batch-size", "64", "--image-size", "8", "--channels", "1",
    "--workers", "2", "--checkpoint-every", "40", "--evaluate-every", "1000", "--run", "r",
    # torchrun gives each process one thread; how many there are decides a sum's last bits.
    "--tracking.every-steps", "1", "--cpus-per-worker", "1",
)  # fmt: skip


def start(folder: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    return start_job(folder, "jobs.train", "--data", str(data), *COMMAND, *more)


def wait_for_checkpoint(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        receipts = sorted((folder / "runs/r/checkpoints").glob("step*.json"))
        if receipts and int(receipts[-1].stem.removeprefix("step-")) >= step:
            return
        time.sleep(0.01)
    raise AssertionError((folder / "log").read_text())


def check_seconds(run: Path, result: dict[str, Any]) -> None:
    """The states add up to what passed on the file system's clock; the death cost some of it.

    But for the time that writing the last tally takes, a quarter of a second on a busy machine.
    """
    claimed = (run / "attempts/000001.000.json").stat().st_mtime
    written = max((run / "time").iterdir()).stat().st_mtime
    seconds = result["run_seconds"]
    assert sum(seconds.values()) == pytest.approx(written - claimed, rel=0.01, abs=0.25)
    assert seconds["recover"] > 0.1


def first_losses(folder: Path, result: dict[str, Any]) -> list[float]:
    """Minus the objective of the first 20 steps, as MLflow has it."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    points = client.get_metric_history(result["run_id"], "objective")
    return [-point.value for point in sorted(points, key=lambda point: point.step)[:20]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_digits(folder)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calm")


@pytest.fixture(scope="module")
def undisturbed(data: Path, calm: Path) -> dict[str, Any]:
    return finish(start(calm, data))


@pytest.fixture(scope="module")
def calm_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calm-alone")


@pytest.fixture(scope="module")
def alone(data: Path, calm_alone: Path) -> dict[str, Any]:
    """By one process, without Ray."""
    return finish(start(calm_alone, data, "--workers", "0"))


# Two starts of a cluster with two workers each take minutes.
WORKERS = ["0", pytest.param("2", marks=pytest.mark.chaos)]


@pytest.mark.parametrize("workers", WORKERS)
def test_killing_driver_and_workers_midway_changes_no_bit_and_no_sample(
    data: Path, tmp_path: Path, workers: str, request: pytest.FixtureRequest
) -> None:
    undisturbed = request.getfixturevalue("alone" if workers == "0" else "undisturbed")
    first = start(tmp_path, data, "--workers", workers)
    wait_for_checkpoint(tmp_path, 80)
    kill_all(first)
    assert not (tmp_path / "runs/r/result.json").exists(), "it had ended before it was killed"
    result = finish(start(tmp_path, data, "--workers", workers))
    assert not list((tmp_path / "runs/r/attempts").glob("000003*"))
    check_seconds(tmp_path / "runs/r", result)
    assert result["samples"] == undisturbed["samples"]
    assert result["digest"] == undisturbed["digest"]


def test_killing_one_worker_midway_changes_no_bit_and_no_sample(
    data: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    process = start(tmp_path, data)
    wait_for_checkpoint(tmp_path, 80)
    workers = [pid for pid, line in descendants(process.pid).items() if "RayTrainWorker" in line]
    os.kill(workers[0], signal.SIGKILL)
    result = finish(process)
    assert (tmp_path / "runs/r/attempts/000001.002.json").exists(), "the workers were not replaced"
    check_seconds(tmp_path / "runs/r", result)
    assert result["samples"] == undisturbed["samples"]
    assert result["digest"] == undisturbed["digest"]


def test_torchrun_gives_the_same_bits_as_ray_and_one_process_the_same_losses(
    data: Path,
    undisturbed: dict[str, Any],
    alone: dict[str, Any],
    calm: Path,
    calm_alone: Path,
    tmp_path: Path,
) -> None:
    here = [*COMMAND, "--workers", "0"]
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--")
    process = start_job(tmp_path, *torchrun, "jobs.train", "--data", str(data), *here)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, (tmp_path / "log").read_text()
    results = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    (two,) = [result for result in results if result.get("run_id")]
    assert two["digest"] == undisturbed["digest"]
    assert len(list((tmp_path / "runs/r/attempts").iterdir())) == 2
    on_ray = first_losses(calm, undisturbed)
    assert len(on_ray) == 20
    assert first_losses(tmp_path, two) == on_ray
    assert first_losses(calm_alone, alone) == pytest.approx(on_ray, rel=1e-5)


def test_a_finished_run_says_so_and_trains_nothing(
    data: Path, calm: Path, undisturbed: dict[str, Any]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in calm.glob("runs/r/**/*.pt"))
    assert finish(start(calm, data)) == undisturbed
    assert before == sorted((p, p.stat().st_mtime_ns) for p in calm.glob("runs/r/**/*.pt"))
    assert f"is finished at step {STEPS}" in (calm / "log").read_text()


@pytest.mark.parametrize("workers", WORKERS)
def test_of_two_starts_of_one_run_the_newer_goes_on_and_the_older_says_why_it_stops(
    data: Path, tmp_path: Path, workers: str
) -> None:
    endless = ("--steps", "100000", "--workers", workers)
    older = start(tmp_path, data, *endless)
    wait_for_checkpoint(tmp_path, 40)
    newer = start(tmp_path, data, *endless)
    assert older.wait(timeout=600) == 1
    assert "was started again elsewhere" in (tmp_path / "log").read_text()
    stopped_at = max(int(p.stem[5:]) for p in (tmp_path / "runs/r/checkpoints").glob("step*.json"))
    wait_for_checkpoint(tmp_path, stopped_at + 40)
    # A STOP object in the run's folder is how to end a run early without losing a step.
    (tmp_path / "runs/r/STOP").touch()
    result = finish(newer)
    assert result["reason"] == "stopped"
    receipts = [int(p.stem[5:]) for p in (tmp_path / "runs/r/checkpoints").glob("step*.json")]
    assert max(receipts) == result["steps"]
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_sigterm_ends_a_run_with_a_checkpoint_of_its_last_step(data: Path, tmp_path: Path) -> None:
    process = start(tmp_path, data, "--steps", "100000", "--workers", "0")
    wait_for_checkpoint(tmp_path, 40)
    process.terminate()
    result = finish(process)
    assert result["reason"] == "stopped"
    receipts = [int(p.stem[5:]) for p in (tmp_path / "runs/r/checkpoints").glob("step*.json")]
    assert max(receipts) == result["steps"]
