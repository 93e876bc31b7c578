"""What each part of a run reads of its config, and what MLflow is told of it."""

from pipeline.commands.train_parts import parts_of
from pipeline.config import TrainConfig


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"data": "/d", "run": "r", "storage": "/runs", **changes})


def test_mlflow_gets_what_was_chosen_and_what_runs_are_compared_by_and_no_noise() -> None:
    asked = config(objective={"beta": 4}, loader={"threads": 3}, tracking={"every_steps": 7})
    params = parts_of(asked).recording.params
    assert params == {
        "data": "/d", "run": "r", "storage": "/runs", "objective.beta": "4.0", "steps": "1000",
        "loader.threads": "3", "global_batch_size": "256", "image_size": "32", "seed": "0",
        "workers": "1", "precision": "auto", "model.kind": "conv", "model.likelihood": "gaussian",
        "objective.kind": "beta", "optimizer.learning_rate": "0.001",
    }  # fmt: skip


def test_a_value_that_mlflow_would_refuse_is_cut() -> None:
    params = parts_of(config(data="/" + "d" * 600)).recording.params
    assert params["data"] == "/" + "d" * 499


def test_versions_are_called_as_was_asked_for_or_like_the_run() -> None:
    plain = parts_of(config()).versions
    assert (plain.name, plain.alias, plain.every) == ("r", None, None)
    named = parts_of(config(tracking={"model": "faces@best", "register_every": 5})).versions
    assert (named.name, named.alias, named.every) == ("faces", "best", 5)


def test_a_range_of_workers_is_the_fewest_and_the_most() -> None:
    group = parts_of(config(workers="2..8")).group
    assert (group.min_workers, group.max_workers) == (2, 8)
    alone = parts_of(config(workers=0)).group
    assert (alone.min_workers, alone.max_workers) == (0, 0)
