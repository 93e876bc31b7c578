"""What only a GPU can show; on machines without one these are skipped by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data import Dataset
from pipeline.runs.checkpoint import newest_checkpoint
from pipeline.runs.outbox import Outbox
from pipeline.runs.run import Pins, Run
from pipeline.training import loop
from pipeline.training.settings import settings_of
from pipeline.training.step import StepReport
from pipeline.training.world import World
from tests.support.digit_models import pack_digits
from tests.support.worlds import train_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_digits(tmp_path_factory.mktemp("digits"))


def train(config: Any) -> list[float]:
    run = Run.at(config)
    run.open(config, run.pins() or Pins(Dataset.open(config.data).digest, None))
    world = World(0, 1, torch.device("cuda"))
    reports = loop.train(settings_of(config), run, run.claim(), world, Outbox())
    return [-report.objective for report in reports if isinstance(report, StepReport)]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_trains_and_its_scale_survives_a_restart(
    data: Path, tmp_path: Path, precision: str
) -> None:
    config = train_config(data, tmp_path, "half", precision=precision, steps=30)
    first = train(config)
    rest = train(config.model_copy(update={"steps": 60}))
    assert rest[-1] < first[0]
    checkpoint = newest_checkpoint(Run.at(config))
    assert checkpoint is not None
    assert bool(checkpoint.scaler) == (precision == "fp16")


def test_a_resumed_run_has_the_bits_of_an_undisturbed_one(data: Path, tmp_path: Path) -> None:
    constant = {"schedule": "constant"}
    whole = train_config(data, tmp_path, "whole", deterministic=True, optimizer=constant)
    moved = train_config(data, tmp_path, "moved", deterministic=True, optimizer=constant, steps=6)
    train(whole)
    train(moved)
    train(moved.model_copy(update={"steps": 12}))
    one, other = newest_checkpoint(Run.at(whole)), newest_checkpoint(Run.at(moved))
    assert one is not None
    assert other is not None
    for part in ("model", "ema"):
        for name, value in getattr(one, part).items():
            assert torch.equal(value, getattr(other, part)[name]), (part, name)


def test_a_compiled_model_trains_to_the_same_losses(data: Path, tmp_path: Path) -> None:
    plain = train(train_config(data, tmp_path, "plain"))
    compiled = train(train_config(data, tmp_path, "compiled", compile=True))
    assert compiled == pytest.approx(plain, rel=1e-3)
