"""What each part of a run reads of its config, and what MLflow is told of it."""

from pipeline.commands.train_parts import parts_of
from pipeline.config import TrainConfig


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"data": "/d", "run": "r", "storage": "/runs", **changes})


def test_mlflow_gets_every_knob_by_its_whole_name_and_none_of_where_it_is_itself() -> None:
    params = parts_of(config(steps=7, objective={"beta": 4})).recording.params
    assert (params["steps"], params["objective.beta"], params["holdout"]) == ("7", "4.0", "None")
    assert not [name for name in params if name.startswith("tracking")]


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
