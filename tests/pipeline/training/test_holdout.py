"""When the hold-out is looked at, and what training keeps for the next look."""

from pathlib import Path

import pytest
import torch

from pipeline.config import LoaderConfig, PreprocessConfig
from pipeline.data import Dataset
from pipeline.runs.history import Validation, no_course
from pipeline.runs.run import Run
from pipeline.training.batches import BatchSettings
from pipeline.training.holdout import HoldOut, HoldOutSettings
from pipeline.training.world import World
from tests.support.packed_digits import write_digits

BATCHES = BatchSettings(
    preprocess=PreprocessConfig(image_size=8, channels=1), global_batch_size=8, seed=0, flip=False,
    transform=None, stall_seconds=60, loader=LoaderConfig(),
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(str(write_digits(tmp_path_factory.mktemp("digits"), 20)))


def holdout(dataset: Dataset | None, folder: Path, *seen: Validation) -> HoldOut:
    return HoldOut(
        Run(str(folder)), World(0, 1, torch.device("cpu")), dataset,
        settings=HoldOutSettings(every_steps=5, patience=1, keeps_best=True, warmup_steps=0),
        batches=BATCHES, validations=seen, course=no_course(),
    )  # fmt: skip


def test_it_is_looked_at_before_all_steps_at_each_fifth_and_after_the_last(
    dataset: Dataset, tmp_path: Path
) -> None:
    looks = holdout(dataset, tmp_path)
    due = [step for step in range(13) if looks.is_due(step, last=step == 12)]
    assert due == [0, 5, 10, 12]


def test_a_run_that_goes_on_does_not_look_again_at_what_it_began_with(
    dataset: Dataset, tmp_path: Path
) -> None:
    going_on = holdout(dataset, tmp_path, Validation(0, 20, {"elbo": -1.0}))
    assert not going_on.is_due(0, last=False)


def test_without_a_hold_out_no_look_is_ever_due_and_patience_never_ends(tmp_path: Path) -> None:
    nothing = holdout(None, tmp_path)
    assert not any(nothing.is_due(step, last=step == 5) for step in range(6))
    assert (nothing.newest, nothing.has_converged) == (None, False)


def test_patience_of_one_ends_with_the_first_look_that_is_no_better(
    dataset: Dataset, tmp_path: Path
) -> None:
    looks = [Validation(step, 20, {"elbo": elbo}) for step, elbo in ((0, -9.0), (5, -3.0))]
    assert not holdout(dataset, tmp_path, *looks).has_converged
    worse = Validation(10, 20, {"elbo": -4.0})
    assert holdout(dataset, tmp_path, *looks, worse).has_converged
