"""MLflow goes away in the middle of a training and comes back: nothing waits, nothing is lost."""

import itertools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.servers.mlflow import MlflowServer
from tests.support.killing import finish, kill_all, start_job
from tests.support.packed_digits import write_digits

COMMAND = (
    "--run", "r", "--steps", "1000000", "--global-batch-size", "64", "--image-size", "8",
    "--channels", "1", "--checkpoint-every", "20", "--evaluate-every", "1000000",
    "--tracking.every-steps", "5", "--model.kind", "linear",
)  # fmt: skip


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError((folder / "log").read_text())
        time.sleep(0.05)


def checkpointed(folder: Path) -> int:
    receipts = (folder / "runs/r/checkpoints").glob("step*.json")
    return max((int(path.stem.removeprefix("step-")) for path in receipts), default=0)


def train_through_an_outage(server: MlflowServer, folder: Path, workers: int) -> dict[str, Any]:
    """The server first takes calls and answers none, then refuses them, then is back."""
    data = write_digits(folder / "data")
    process = start_job(
        folder, "jobs.train", "--data", str(data), "--workers", str(workers), *COMMAND
    )
    try:
        wait_until(lambda: checkpointed(folder) >= 40, process, folder)
        server.send(signal.SIGSTOP)
        stopped = time.time()
        # Said once a call has used up the client's time-outs and its retries.
        said = "can't be reached"
        wait_until(lambda: said in (folder / "log").read_text(), process, folder)
        server.send(signal.SIGCONT)
        server.stop()
        before = checkpointed(folder)
        wait_until(lambda: checkpointed(folder) >= before + 100, process, folder)
        started = time.time()
        server.start()
        before = checkpointed(folder)
        wait_until(lambda: checkpointed(folder) >= before + 40, process, folder)
        (folder / "runs/r/STOP").touch()
        return finish(process) | {"outage": (stopped, started)}
    finally:
        if process.poll() is None:
            kill_all(process)


def seconds_between_points(history: list[Any]) -> dict[float, float]:
    """From the time of a point (seconds since 1970) to the seconds since the one before."""
    times = [metric.timestamp / 1000 for metric in history]
    return {later: later - earlier for earlier, later in itertools.pairwise(times)}


def check(server: MlflowServer, result: dict[str, Any], timeout_seconds: float) -> None:
    history = mlflow.MlflowClient(server.uri).get_metric_history(result["run_id"], "elbo")
    assert [metric.step for metric in history] == [1, *range(5, result["steps"] + 1, 5)]
    stopped, started = result["outage"]
    gaps = seconds_between_points(history)
    during = sorted(gap for when, gap in gaps.items() if stopped < when < started)
    calm = sorted(gap for when, gap in gaps.items() if not stopped < when < started)
    print(
        json.dumps(
            {
                "points_during_outage": len(during),
                "seconds_of_5_steps_calm": round(calm[len(calm) // 2], 4),
                "seconds_of_5_steps_in_outage": round(during[len(during) // 2], 4),
            }
        )
    )
    # A step that waited for MLflow would have waited for all of a time-out.
    assert len([gap for gap in during if gap >= timeout_seconds]) == 0


def test_while_mlflow_is_away_steps_go_on_and_in_the_end_each_point_is_there_once(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TIMEOUT", "4"), ("MAX_RETRIES", "1"), ("BACKOFF_FACTOR", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    check(mlflow_server, train_through_an_outage(mlflow_server, tmp_path, 0), 4)
