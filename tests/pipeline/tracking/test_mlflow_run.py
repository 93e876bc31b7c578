import hashlib
import math
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pipeline import storage
from pipeline.runs.goodput import STATES, TALLY, Tally
from pipeline.runs.outbox import Point
from pipeline.runs.result import TrainingResult
from pipeline.runs.run import CLAIM, Run
from pipeline.tracking.mlflow_closing import close_dead_runs
from pipeline.tracking.mlflow_run import DIGEST_TAG, RUN_TAG, TrackedRun


def test_a_run_that_a_killed_start_left_without_params_gets_them_from_the_next(
    mlflow_file: str, tmp_path: Path
) -> None:
    uri = mlflow_file
    client = MlflowClient(uri)
    experiment = client.create_experiment("own")
    url = f"{tmp_path}/run"
    tags = {RUN_TAG: url, DIGEST_TAG: hashlib.sha256(url.encode()).hexdigest()}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    client.log_param(run_id, "steps", "10")
    # What was logged stays as the run began, as MLflow wants it.
    found = TrackedRun(uri, "own", "r", url, {"steps": "20", "seed": "4"})
    assert found.run_id == run_id
    assert client.get_run(run_id).data.params == {"steps": "10", "seed": "4"}


def test_a_run_that_died_says_running_no_more_and_one_that_lives_does(
    mlflow_file: str, tmp_path: Path
) -> None:
    runs = {name: Run(str(tmp_path / name)) for name in ("dead", "lives", "unknown", "ended")}
    tracked = {name: TrackedRun(mlflow_file, "vae", name, r.url, {}) for name, r in runs.items()}
    now = time.time()
    for name, age in (("dead", 3600.0), ("lives", 30.0), ("ended", 3600.0)):
        claim = CLAIM.encode({"began": now - 7200})
        storage.publish(runs[name].path("attempts", "000001.000.json"), claim)
        tally = Tally(dict.fromkeys(STATES, 1.0), now - age)
        at = runs[name].path("time", "000001.001.json")
        storage.publish(at, TALLY.encode(asdict(tally)))
    runs["ended"].finish(
        TrainingResult(
            run="ended", run_id=None, reason="done", steps=3, samples=30, bad_samples=0,
            converged=False, run_seconds={}, elbo=None, chosen_step=3, holdout_before=None,
            holdout_after=None, model=None, model_version=None, bundle=None, digest=None,
        )
    )  # fmt: skip
    assert close_dead_runs(mlflow_file) == (["dead"], ["ended"])
    assert close_dead_runs(mlflow_file) == ([], [])
    client = MlflowClient(mlflow_file)
    found = {name: client.get_run(one.run_id).info for name, one in tracked.items()}
    assert {name: info.status for name, info in found.items()} == {
        "dead": "KILLED", "lives": "RUNNING", "unknown": "RUNNING", "ended": "FINISHED",
    }  # fmt: skip
    assert abs(found["dead"].end_time / 1000 - (now - 3600)) < 1
    # Its next start is the same run, and runs.
    TrackedRun(mlflow_file, "vae", "dead", runs["dead"].url, {})
    assert client.get_run(tracked["dead"].run_id).info.status == "RUNNING"


def test_a_start_finds_the_last_step_without_a_metrics_whole_history(
    mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, url = mlflow_file, f"{tmp_path}/run"
    first = TrackedRun(uri, "vae", "r", url, {})
    first.log([Point("elbo", step, 1_000 - step, {"elbo": -1.0}) for step in (1, 2, 30, 4)])
    first.log([Point("holdout_elbo", 20, 5, {"holdout_elbo": math.nan})])
    asked = []
    monkeypatch.setattr(
        SqlAlchemyStore, "get_metric_history", lambda *each, **_: asked.append(each)
    )
    second = TrackedRun(uri, "vae", "r", url, {})
    assert asked == []
    monkeypatch.undo()
    second.log([Point("elbo", step, 9, {"elbo": -2.0}) for step in (29, 30, 31)])
    second.log([Point("holdout_elbo", step, 9, {"holdout_elbo": -3.0}) for step in (20, 21)])
    history = MlflowClient(uri).get_metric_history(second.run_id, "elbo")
    assert sorted(point.step for point in history if point.value == -2.0) == [31]
    held = MlflowClient(uri).get_metric_history(second.run_id, "holdout_elbo")
    assert sorted(point.step for point in held) == [20, 21]
