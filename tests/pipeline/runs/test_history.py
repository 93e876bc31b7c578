import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.data import Dataset, load_images
from pipeline.errors import RunError, StorageError
from pipeline.figures.history import draw_history
from pipeline.runs.best import best_of
from pipeline.runs.history import (
    HeldOut,
    Validation,
    check_history,
    read_moments,
    read_validations,
    write_validation,
)
from pipeline.runs.run import Run
from pipeline.training.history_writer import HistoryWriter
from pipeline.vae import build_vae
from tests.support.digit_models import digits_vae, pack_digits

COURSE = torch.zeros(0, 6)


@pytest.fixture(scope="module")
def holdout(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset.open(str(pack_digits(tmp_path_factory.mktemp("digits"))))


def write(run: Run, holdout: Dataset, steps: list[int]) -> list[Validation]:
    vae = digits_vae()
    writer = HistoryWriter(run, holdout, vae)
    validations = [Validation(step, len(holdout), {"elbo": -float(step)}) for step in steps]
    for validation in validations:
        writer.write(HeldOut(validation, torch.zeros(3), torch.zeros(2)), vae, COURSE)
    return validations


def test_validations_come_back_in_the_order_of_steps_and_replay_adds_none(
    tmp_path: Path, holdout: Dataset
) -> None:
    run = Run(str(tmp_path))
    written = write(run, holdout, [0, 900, 1000, 20000])
    write(run, holdout, [1000, 20000])
    assert read_validations(run) == written


def test_the_images_are_the_holdouts_first_and_their_decoded_means(
    tmp_path: Path, holdout: Dataset
) -> None:
    run, vae = Run(str(tmp_path)), digits_vae()
    (moment,) = read_moments(run, write(run, holdout, [5]), 8)
    originals = load_images(holdout, 10, vae.preprocess).images
    assert torch.equal(moment.originals, originals)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(originals).mean)
    assert (moment.reconstructions.float() / 255 - decoded).abs().max() <= 0.5 / 255 + 1e-6


def test_few_moments_are_shown_of_many_with_the_first_and_the_last(
    tmp_path: Path, holdout: Dataset
) -> None:
    run = Run(str(tmp_path))
    shown = read_moments(run, write(run, holdout, list(range(0, 300, 10))), 6)
    steps = [moment.validation.step for moment in shown]
    assert (steps[0], steps[-1], len(steps)) == (0, 290, 6)
    assert steps == sorted(steps)
    gaps = [later - earlier for earlier, later in itertools.pairwise(steps)]
    assert gaps == sorted(gaps)


def test_a_run_that_diverges_is_kept_without_what_is_not_finite(
    tmp_path: Path, holdout: Dataset
) -> None:
    run, vae = Run(str(tmp_path)), digits_vae()
    terms = {"elbo": float("nan"), "kl": float("inf"), "log_likelihood": -3.0}
    nan = torch.full((3,), float("nan"))
    diverged = HeldOut(Validation(5, len(holdout), terms), nan, nan.clone())
    HistoryWriter(run, holdout, vae).write(diverged, vae, COURSE)
    assert read_validations(run) == [Validation(5, len(holdout), {"log_likelihood": -3.0})]
    pictures = [name for name, _ in draw_history(read_validations(run) * 2, [], COURSE)]
    assert pictures == ["training_curves.png"]


def test_a_look_without_a_value_is_never_the_best() -> None:
    diverged, good = Validation(5, 3, {}), Validation(9, 3, {"elbo": -3.0})
    assert best_of([diverged, good]) is best_of([good, diverged]) is good


def test_a_history_of_an_older_version_is_named_and_what_can_be_done(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    kept = save({"originals": images, "reconstructions": images.clone()})
    write_validation(run, Validation(5, 2, {"elbo": -1.0}), kept)
    with pytest.raises(RunError, match=r"holds no 'course', so an older version.*--model .*bundle"):
        check_history(run)


def test_a_full_disk_costs_a_picture_and_not_the_run(
    tmp_path: Path, holdout: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where a folder should be")
    write(Run(str(blocked)), holdout, [5])
    assert "the pictures of step 5 are not kept" in caplog.text
    assert read_validations(Run(str(tmp_path / "nowhere"))) == []


def test_a_convolutional_network_of_colour_images_is_shown_too(
    tmp_path: Path, holdout: Dataset
) -> None:
    preprocess = PreprocessConfig(image_size=16, channels=3)
    vae = build_vae(ModelConfig(kind="conv", width=8), preprocess)
    run, validation = Run(str(tmp_path)), Validation(7, len(holdout), {"elbo": -1.0})
    HistoryWriter(run, holdout, vae).write(
        HeldOut(validation, torch.zeros(3), torch.zeros(2)), vae, COURSE
    )
    (moment,) = read_moments(run, [validation], 8)
    assert moment.reconstructions.shape == moment.originals.shape == (10, 3, 16, 16)


def test_a_damaged_picture_is_named_with_what_mends_it(tmp_path: Path, holdout: Dataset) -> None:
    run = Run(str(tmp_path))
    written = write(run, holdout, [5, 10])
    path = tmp_path / "history/0000000010.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match=r"0000000010\.safetensors: is damaged"):
        read_moments(run, written, 8)
