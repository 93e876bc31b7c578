"""What goes wrong is written down by key, and ends the run where it is too much."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline import storage
from pipeline.config import ModelConfig, OptimizerConfig, PreprocessConfig
from pipeline.data import Batch, Dataset
from pipeline.errors import RunError
from pipeline.runs.run import Run, Start
from pipeline.training.incidents import Incidents
from pipeline.training.state import Ema, TrainState, make_optimizer
from pipeline.training.step import StepReport
from pipeline.training.world import World
from pipeline.vae import build_vae
from tests.support.packed_digits import write_digits


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "runs/r"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """100 images."""
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder, 100, holdout=0.0)
    found = Dataset.open(str(folder / "packed"))
    assert len(found) == 100
    return found


@pytest.fixture
def state() -> TrainState:
    vae = build_vae(ModelConfig(kind="linear"), PreprocessConfig(image_size=8, channels=1))
    return TrainState(vae, nn.Identity(), Ema(vae, 0.9), make_optimizer(OptimizerConfig(), vae))


def incidents(run: Run, dataset: Dataset, bad_fraction: float = 0.02) -> Incidents:
    return Incidents(run, Start(1, 1), World(0, 1, torch.device("cpu")), dataset, bad_fraction)


def step(*, skipped: bool = False) -> tuple[Batch, StepReport]:
    batch = Batch(
        images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8), keys=["a", "b", ""],
        valid=torch.tensor([True, False, False]), columns={}, epoch=0, index=0, slots=range(3),
        errors={"b": "truncated"},
    )  # fmt: skip
    return batch, StepReport(
        step=7, epoch=0, images=1, bad_images=1, images_seen=1, terms={}, objective=0.0,
        beta=1.0, gradient_norm=0.0, learning_rate=0.0, skipped=skipped, stop_requested=False,
        seconds=1.0, data_wait_seconds=0.0,
    )  # fmt: skip


def test_bad_samples_are_listed_with_their_reasons_once_they_are_published(
    run: Run, dataset: Dataset, state: TrainState
) -> None:
    found = incidents(run, dataset)
    found.check(*step(), state)
    url = run.path("bad_samples/000001.001.0.json")
    assert not storage.exists(url)
    found.publish()
    assert storage.read_json(url) == {"b": "truncated"}


def test_the_keys_of_a_batch_that_was_skipped_are_its_valid_ones(
    run: Run, dataset: Dataset, state: TrainState
) -> None:
    incidents(run, dataset).check(*step(skipped=True), state)
    assert storage.read_json(run.path("skipped/0000000007.0.json")) == ["a"]


def test_two_in_a_hundred_may_be_bad_and_a_third_ends_the_run_with_the_list(
    run: Run, dataset: Dataset, state: TrainState
) -> None:
    found = incidents(run, dataset)
    state.bad_images = 2
    found.check(*step(), state)
    state.bad_images = 3
    with pytest.raises(RunError, match=r"3 samples .* more than --loader.bad-fraction 0.02 of 100"):
        found.check(*step(), state)
    assert storage.exists(run.path("bad_samples/000001.001.0.json"))


def test_later_epochs_give_room_for_more(run: Run, dataset: Dataset, state: TrainState) -> None:
    state.bad_images, state.images_seen = 3, 147
    incidents(run, dataset).check(*step(), state)


def test_twenty_steps_in_a_row_that_moved_nothing_end_the_run(
    run: Run, dataset: Dataset, state: TrainState
) -> None:
    found = incidents(run, dataset)
    state.skipped_in_a_row = 19
    found.check(*step(skipped=True), state)
    state.skipped_in_a_row = 20
    with pytest.raises(RunError, match="not finite in 20 steps in a row"):
        found.check(*step(skipped=True), state)
