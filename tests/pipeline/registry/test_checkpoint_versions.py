"""Checkpoints registered while a run goes on; MLflow on sqlite."""

import time
from pathlib import Path

import pytest
import torch

from pipeline.commands.train import run_training
from pipeline.commands.train_parts import parts_of
from pipeline.config import ModelConfig, TrackingConfig, TrainConfig
from pipeline.registry import checkpoint_versions as registrar
from pipeline.registry.catalogue import Version, list_models
from pipeline.registry.models import load_model, version_tags
from pipeline.runs.checkpoint import newest_checkpoint
from pipeline.runs.run import Run
from tests.support.packed_digits import write_digits


@pytest.fixture
def config(mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    return TrainConfig(
        data=str(write_digits(tmp_path, 100)), run="r", storage=str(tmp_path / "runs"), steps=20,
        global_batch_size=16, image_size=8, channels=1, workers=0, checkpoint_every=10,
        evaluate_every=10, model=ModelConfig(kind="linear"),
        tracking=TrackingConfig(register_every=10),
    )  # fmt: skip


def test_a_registered_checkpoint_has_its_average_and_its_figures(config: TrainConfig) -> None:
    result = run_training(config)
    run = Run.at(config)
    assert result.run_id
    assert result.holdout_after
    model = registrar.register_checkpoint(parts_of(config).versions, result.run_id)
    weights = load_model(model.uri).state_dict()
    checkpoint = newest_checkpoint(run)
    assert checkpoint is not None
    for name, kept in checkpoint.ema.items():
        assert isinstance(kept, torch.Tensor)
        assert torch.equal(weights[name], kept)
    tags = version_tags(model)
    assert float(tags["holdout_elbo"]) == result.holdout_after["elbo"]
    # The run's last checkpoint holds the same weights as its bundle: no second version.
    assert model.version == result.model_version


def test_while_a_run_goes_on_its_due_checkpoint_is_registered(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registrar, "_SECONDS", 0.01)
    result = run_training(config)
    tracking = config.tracking.model_copy(update={"model": "on-the-way@candidate"})
    going_on = config.model_copy(update={"tracking": tracking})
    deadline = time.monotonic() + 600
    found: list[Version] = []
    with registrar.registered_on_the_way(parts_of(going_on).versions, lambda: result.run_id):
        while not found:
            assert time.monotonic() < deadline
            models = [model for model in list_models() if model.name == "on-the-way"]
            found = [row for model in models for row in model.versions if row.aliases]
    assert [row.digest for row in found] == [result.digest]
