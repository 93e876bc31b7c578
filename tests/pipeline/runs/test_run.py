from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.config import OptimizerConfig, TrainConfig
from pipeline.errors import ConfigError, RunError
from pipeline.runs.outbox import Point
from pipeline.runs.run import RUN, Pins, Run, Start


def config(tmp_path: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(data="/d", run="r", storage=str(tmp_path), steps=10, **changes)


def test_a_run_continues_with_more_steps_and_other_workers(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    run.open(config(tmp_path), Pins("digest", None))
    run.open(config(tmp_path, workers=3).model_copy(update={"steps": 20}), Pins("digest", None))


def test_a_run_goes_on_that_began_before_a_knob_was_there(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    run.open(config(tmp_path), Pins("digest", None))
    kept: Any = storage.read_document(RUN, run.path("run.json"))
    del kept["config"]["crop"], kept["config"]["optimizer"]["clip_norm"]
    storage.publish(run.path("run.json"), RUN.encode(kept))
    run.open(config(tmp_path), Pins("digest", None))
    with pytest.raises(ConfigError, match="crop: was 'center', is 'stretch'"):
        run.open(config(tmp_path, crop="stretch"), Pins("digest", None))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": OptimizerConfig(learning_rate=0.5)}, "optimizer.learning_rate: was 0.001"),
        ({"seed": 4}, "seed: was 0, is 4"),
        ({"global_batch_size": 7}, "global_batch_size: was 256, is 7"),
    ],
)
def test_another_configuration_is_refused_and_the_difference_is_named(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    run = Run.at(config(tmp_path))
    run.open(config(tmp_path), Pins("digest", None))
    with pytest.raises(ConfigError, match=named):
        run.open(config(tmp_path, **changes), Pins("digest", None))


def test_another_dataset_or_fewer_steps_are_refused(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    run.open(config(tmp_path), Pins("digest", None))
    with pytest.raises(ConfigError, match="dataset: was digest, is other"):
        run.open(config(tmp_path), Pins("other", None))
    with pytest.raises(ConfigError, match="steps: was 10, is 5"):
        run.open(config(tmp_path).model_copy(update={"steps": 5}), Pins("digest", None))


def test_a_run_keeps_the_generations_that_it_began_with(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    assert run.pins() is None
    run.open(config(tmp_path), Pins("digest", "held"))
    assert run.pins() == Pins("digest", "held")


def test_starts_at_the_same_time_get_different_attempts(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        starts = list(threads.map(lambda _: run.claim(), range(24)))
    assert sorted(start.number for start in starts) == list(range(1, 25))


def test_a_newer_start_outranks_all_restarts_of_an_older_one(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    first = run.claim()
    second = run.claim()
    restarted = run.claim_restart(first)
    assert restarted == Start(1, 1)
    assert run.newest_start() == second
    assert run.claim_restart(second) == Start(2, 1) == run.newest_start()


def test_kept_points_come_back_and_are_gone_when_none_is_left(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    points = [Point("elbo", 1, 2, {"elbo": 3.0})]
    unsent = run.keep_points(points)
    assert run.kept_points(unsent) == points
    assert run.keep_points([]) is None
    assert run.kept_points(None) == []


def test_points_that_are_gone_or_others_than_the_result_tells_of_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.at(config(tmp_path))
    older = [Point("elbo", 1, 2, {"elbo": 3.0})]
    run.keep_points(older)
    unsent = run.keep_points([Point("elbo", 5, 2, {"elbo": 3.0})])
    run.keep_points(older)
    with pytest.raises(RunError, match=r"does not hold the 1 points .*`rm "):
        run.kept_points(unsent)
    run.keep_points([])
    assert run.kept_points(unsent) == []
    assert "points.json: is gone, so MLflow lacks 1 points of this run" in caplog.text


def test_a_stop_that_ended_one_start_does_not_stop_the_next(tmp_path: Path) -> None:
    run = Run.at(config(tmp_path))
    run.claim()
    storage.publish(run.path("STOP"), b"")
    run.claim()
    assert not storage.exists(run.path("STOP"))
