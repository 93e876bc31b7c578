"""What a config means to each part of training is told from its keys alone."""

from pathlib import Path

import pytest

from pipeline.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from pipeline.training.settings import settings_of


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"data": "/d", "run": "r", "storage": "/runs", **changes})


def test_a_start_model_is_looked_for_in_the_runs_own_folder_under_the_name_that_was_given() -> None:
    assert settings_of(config()).state.init is None
    init = settings_of(config(init="models:/other@champion")).state.init
    assert init is not None
    assert (init.name, init.bundle) == ("models:/other@champion", "/runs/r/init")


@pytest.mark.parametrize(
    ("objective", "keeps"),
    [
        ({}, True),
        ({"beta": 4.0}, False),
        ({"kind": "iwae", "samples": 5}, True),
        ({"kind": "autoencoder"}, False),
    ],
)
def test_the_best_look_is_kept_only_where_a_better_elbo_is_what_training_aims_at(
    objective: dict[str, object], keeps: bool
) -> None:
    assert settings_of(config(objective=objective)).looks.keeps_best is keeps


def test_nothing_is_an_illness_before_both_warm_ups_are_over() -> None:
    both = config(
        objective=ObjectiveConfig(warmup="linear:300"), optimizer=OptimizerConfig(warmup_steps=50)
    )
    assert settings_of(both).looks.warmup_steps == 300
    assert settings_of(config(optimizer={"warmup_steps": 50})).looks.warmup_steps == 50


def test_exactness_and_precision_reach_the_state_and_the_step_alike(tmp_path: Path) -> None:
    settings = settings_of(
        config(exact=True, micro_batch_size=64, precision="fp32", storage=str(tmp_path))
    )
    assert settings.state.exact is settings.step.exact is True
    assert settings.state.precision == settings.step.precision == "fp32"
    assert settings.step.micro_batch_size == 64
