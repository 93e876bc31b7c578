"""One recorder, a real MLflow on sqlite, a real HTTP endpoint."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline import storage
from pipeline.config import TrackingConfig
from pipeline.errors import ConfigError
from pipeline.runs.outbox import Point, Series
from pipeline.tracking.metric_table import MetricsReport
from pipeline.tracking.recorder import RecorderSettings, RunRecorder, mlflow_status


@pytest.fixture
def uri(mlflow_file: str) -> str:
    return mlflow_file


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Any]:
    """Makes recorders of one run whose folder has a quote in its name; their threads end here."""
    made: list[RunRecorder] = []

    def make(uri: str, **knobs: Any) -> RunRecorder:
        settings = RecorderSettings(
            f"{tmp_path}/it's mine", "mine", TrackingConfig(**knobs), uri, {"seed": "0"}
        )
        made.append(RunRecorder(settings))
        return made[-1]

    yield make
    for one in made:
        one.finish(None)


def point(step: int, time_ms: int, series: Series = "elbo") -> Point:
    return Point(series, step, time_ms, {series: -float(step), "kl": 1.0})


def history(uri: str, run_id: str, metric: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(uri)
    return [(m.step, m.value) for m in client.get_metric_history(run_id, metric)]


def test_replayed_points_and_a_second_start_leave_each_point_once(uri: str, recorder: Any) -> None:
    first = recorder(uri)
    first.record("1", 0, [point(step, 1_000 + step) for step in range(1, 31)], MetricsReport())
    assert first.flush(30) == []
    # The workers died and replay from step 20 on, at other times.
    first.record("2", 0, [point(step, 9_000 + step) for step in range(20, 41)], MetricsReport())
    assert first.flush(30) == []
    run_id = first.finish("KILLED")
    second = recorder(uri)
    second.record("1", 0, [point(step, 99_000 + step) for step in range(35, 51)], MetricsReport())
    second.record("1", 16, [point(50, 99_999, "holdout_elbo")], MetricsReport())
    assert second.flush(30) == []
    assert second.finish("FINISHED") == run_id
    assert history(uri, run_id, "elbo") == [(step, -float(step)) for step in range(1, 51)]
    assert history(uri, run_id, "holdout_elbo") == [(50, -50.0)]
    assert mlflow.MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


def test_a_step_that_is_made_again_before_mlflow_got_it_first_is_logged_once(
    uri: str, recorder: Any
) -> None:
    """Both wait in one queue while MLflow is away, with times of their own."""
    one = recorder(uri)
    with one._lock:  # Nothing is sent meanwhile.
        one._queue.extend(("1", point(step, 1_000 + step)) for step in range(1, 31))
        one._queue.extend(("2", point(step, 9_000 + step)) for step in range(20, 41))
    assert one.flush(30) == []
    run_id = one.finish("FINISHED")
    assert history(uri, run_id, "elbo") == [(step, -float(step)) for step in range(1, 41)]


def test_points_that_come_before_those_that_a_dead_recorder_held_are_taken_with_them(
    uri: str, recorder: Any
) -> None:
    """Else, if it dies too, MLflow's newest step says that what it never got was sent."""
    dead = recorder("http://127.0.0.1:9")
    dead.record("1", 0, [point(step, step) for step in range(1, 12)], MetricsReport())
    one = recorder(uri)
    late = one.record("1", 11, [point(12, 12)], MetricsReport())
    assert (late.points, late.missed) == (0, True)
    assert one.latest().report.unsent_points == 0
    one.record("1.1", 0, [point(step, step) for step in range(1, 14)], MetricsReport())
    # A call that Ray makes twice.
    again = [point(step, 9_000) for step in range(1, 14)]
    assert not one.record("1.1", 0, again, MetricsReport()).missed
    assert one.latest().report.unsent_points == 13
    assert one.flush(30) == []
    run_id = one.finish("FINISHED")
    assert history(uri, run_id, "elbo") == [(step, -float(step)) for step in range(1, 14)]


def test_the_count_of_arrived_points_is_that_of_the_present_sender_alone(
    uri: str, recorder: Any
) -> None:
    one = recorder(uri)
    one.record("1", 0, [point(1, 1), point(2, 2)], MetricsReport())
    one.flush(30)
    assert one.record("1", 0, [], MetricsReport()).points == 2
    assert one.record("2", 0, [point(3, 3)], MetricsReport()).points == 0
    one.flush(30)
    assert one.record("2", 0, [], MetricsReport()).points == 1
    one.finish("FINISHED")


def test_while_mlflow_is_unreachable_nothing_blocks_and_nothing_is_lost(recorder: Any) -> None:
    one = recorder("http://127.0.0.1:9")
    points = [point(step, step) for step in range(1, 6)]
    assert one.record("1", 0, points, MetricsReport()).points == 0
    assert one.flush(0.5) == points
    assert one.latest().report.unsent_points == 5


def scraped(address: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("term", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_replayed_steps_are_not_counted_as_images_again_but_their_seconds_are(
    uri: str, recorder: Any
) -> None:
    one = recorder(uri)

    def report(restart: int, step: int, seconds: float) -> MetricsReport:
        return MetricsReport(
            restart=restart, step=step, images=100 * step, step_seconds=seconds,
            terms={"elbo": -float(step)},
        )  # fmt: skip

    one.record("1", 0, [], report(1, 0, 0.0))
    one.record("1", 0, [], report(1, 10, 5.0))
    one.record("2", 0, [], report(2, 5, 0.0))
    one.record("2", 0, [], report(2, 6, 1.0))
    found = scraped(one.address())
    assert found["vae_train_images_total", ""] == 1000
    assert found["vae_train_step_seconds_total", ""] == 6.0
    one.record("2", 0, [], report(2, 12, 4.0))
    found = scraped(one.address())
    assert found["vae_train_images_total", ""] == 1200
    assert found["vae_train_steps_total", ""] == 12
    assert found["vae_train_restarts_total", ""] == 1
    assert found["vae_train_step_seconds_total", ""] == 9.0
    assert found["vae_train_nats", "elbo"] == -12.0
    one.finish("FINISHED")


def test_a_run_that_ended_is_no_longer_named_to_prometheus_one_that_died_is(
    uri: str, recorder: Any
) -> None:
    one = recorder(uri)
    (target,) = storage.read_json(one._discovery)
    assert target == {"targets": [one.address()], "labels": {"run": "mine"}}
    one.finish("FINISHED")
    assert not storage.exists(one._discovery)


def test_the_endpoint_can_be_found_in_the_runs_folder(
    uri: str, recorder: Any, tmp_path: Path
) -> None:
    one = recorder(uri)
    (found,) = json.loads((tmp_path / "it's mine/metrics.json").read_text())
    assert found == {"targets": [one.address()], "labels": {"run": "mine"}}
    one.finish("FINISHED")


def test_a_start_that_another_one_has_replaced_takes_nothing_of_its_away(
    uri: str, recorder: Any
) -> None:
    older = recorder(uri)
    older.record("1", 0, [point(1, 1)], MetricsReport())
    older.flush(30)
    newer = recorder(uri)
    newer.record("1", 0, [point(2, 2)], MetricsReport())
    newer.flush(30)
    run_id = older.finish(mlflow_status("superseded"))
    (target,) = storage.read_json(newer._discovery)
    assert target["targets"] == [newer.address()]
    client = mlflow.MlflowClient(uri)
    assert client.get_run(run_id).info.status == "RUNNING"
    newer.finish("FINISHED")
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_fixed_port_is_free_again_when_a_recorder_has_finished(uri: str, recorder: Any) -> None:
    """As when MLflow was away at a run's end, and a second recorder sends what it lacks."""
    first = recorder(uri)
    port = int(first.address().rpartition(":")[2])
    with pytest.raises(ConfigError, match=f":{port}: Address already in use. Give another"):
        recorder(uri, metrics=f"127.0.0.1:{port}")
    first.finish("FINISHED")
    second = recorder(uri, metrics=f"127.0.0.1:{port}")
    assert second.address() == first.address()
    second.finish("FINISHED")


def test_a_deleted_experiment_is_told_as_a_refusal_and_not_as_silence(
    uri: str, recorder: Any
) -> None:
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("old"))
    refused = recorder(uri, experiment="old")
    end = time.monotonic() + 600
    while refused.latest().problem is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    refused.finish(None)
    assert "refuses what it is sent: " in refused.latest().problem
    assert "can't be reached" not in refused.latest().problem
