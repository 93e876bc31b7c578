import logging
import socket
from pathlib import Path

import pytest

from jobs.demo import write_digits
from pipeline.commands.train import _check_size, resolve, run_training
from pipeline.config import ModelConfig, PackConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, DatasetError
from pipeline.packing.pack import pack
from pipeline.runs.run import Run
from pipeline.tracking.mlflow_client import mlflow_client, tracking_uri
from tests.support.digit_models import pack_digits


@pytest.fixture(autouse=True)
def _mlflow_of_its_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return pack_digits(tmp_path)


def config(dataset: Path, steps: int, **changes: object) -> TrainConfig:
    values = {
        "data": str(dataset),
        "holdout": str(dataset),
        "run": "pinned",
        "storage": str(dataset.parent / "runs"),
        "steps": steps,
        "global_batch_size": 20,
        "image_size": 8,
        "channels": 1,
        "workers": 0,
        "model": ModelConfig(kind="mlp", latent_channels=2, width=8),
    }
    return TrainConfig.model_validate(values | changes)


def append(dataset: Path) -> None:
    late = dataset.parent / "images" / "late"
    late.mkdir()
    for image in list((dataset.parent / "images" / "3").glob("*.png")):
        (late / image.name).write_bytes(image.read_bytes() + b"\0")
    source = (str(dataset.parent / "images"),)
    pack(PackConfig(source=source, output=str(dataset), workers=1, append=True))


def test_an_append_does_not_disturb_a_run_that_is_continued(dataset, caplog):
    caplog.set_level(logging.INFO)
    before = Dataset.open(str(dataset))
    first = run_training(config(dataset, 3))
    append(dataset)
    assert len(Dataset.open(str(dataset))) > len(before) == 120
    second = run_training(config(dataset, 14))
    assert f"the run stays with its {len(before)} samples" in caplog.text
    assert (first.samples, second.samples) == (3 * 20, 14 * 20)
    # Two epochs of six steps and two more: with the appended images there would be fewer epochs.
    pins = Run(second.run).pins()
    assert pins is not None
    assert (pins.dataset, pins.holdout) == (before.digest, before.digest)
    # The untrained model's numbers come from a first start, and must be of the same images.
    assert second.holdout_before == first.holdout_before


def test_a_run_whose_generation_is_gone_says_which_one_it_needs(dataset):
    digest = Dataset.open(str(dataset)).digest
    run_training(config(dataset, 2))
    append(dataset)
    (dataset / "manifests" / f"{digest}.json").unlink()
    with pytest.raises(DatasetError, match=f"has no generation {digest}"):
        run_training(config(dataset, 4))


def test_a_run_that_an_error_of_any_kind_ends_is_failed_in_mlflow(dataset):
    broken = config(dataset, 2, transform="json:loads")  # takes one argument, gets two
    with pytest.raises(TypeError, match="positional argument"):
        run_training(broken)
    client = mlflow_client(tracking_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("vae").experiment_id])
    assert found.info.status == "FAILED"
    assert not (dataset.parent / "runs/pinned/metrics.json").exists()


def test_with_ray_a_port_that_is_taken_is_one_error_before_anything_starts(dataset, monkeypatch):
    monkeypatch.setattr("pipeline.tracking.endpoint.RELEASE_SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tracking = {"metrics": f"127.0.0.1:{port}"}
        with pytest.raises(ConfigError, match=f":{port}: Address already in use"):
            run_training(config(dataset, 2, workers=1, tracking=tracking))
    assert not (dataset.parent / "runs/pinned/attempts").exists()


def test_a_run_that_diverged_ends_and_registers_no_model(dataset, caplog):
    wild = config(dataset, 6, optimizer={"learning_rate": 1e8}, objective={"beta": 2})
    ended = run_training(wild)
    assert (ended.reason, ended.elbo, ended.model) == ("done", None, None)
    assert "not finite, so no model is registered" in caplog.text
    client = mlflow_client(tracking_uri())
    assert list(client.search_registered_models()) == []


def test_an_empty_hold_out_beside_the_data_is_none(tmp_path):
    write_digits(tmp_path / "images", range(30))
    result = pack(
        PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), holdout=1e-9)
    )
    assert (result.holdout_samples, len(Dataset.open(result.holdout))) == (0, 0)
    asked = config(Path(result.dataset), 1, holdout=None)
    assert resolve(asked).holdout is None


def test_an_empty_dataset_and_a_batch_larger_than_it_are_said_before_the_start(tmp_path, caplog):
    write_digits(tmp_path / "images", range(30))
    result = pack(
        PackConfig(source=(str(tmp_path / "images"),), output=str(tmp_path / "d"), holdout=1e-9)
    )
    with pytest.raises(DatasetError, match="holds no samples"):
        run_training(config(Path(result.holdout), 1, holdout=None))
    with caplog.at_level(logging.WARNING):
        _check_size(Dataset.open(result.dataset), 64)
    assert "a batch of 64 is larger than the dataset of 30 images" in caplog.text
