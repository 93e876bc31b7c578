"""With what a run was made, compared at its next start; other formats are refused at once."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch

from pipeline import storage
from pipeline.commands.train import run_training
from pipeline.config import ModelConfig, TrainConfig
from pipeline.data import Dataset
from pipeline.errors import PipelineError
from pipeline.runs import run as run_module
from pipeline.runs.run import Run
from pipeline.runs.versions import changes, versions_here
from tests.support.digit_models import pack_digits


@pytest.fixture(autouse=True)
def _mlflow_of_its_own(mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)


def config(dataset: Path, steps: int) -> TrainConfig:
    return TrainConfig(
        data=str(dataset), holdout=str(dataset), run="r", storage=str(dataset.parent / "runs"),
        steps=steps, global_batch_size=20, image_size=8, channels=1, workers=0,
        model=ModelConfig(kind="mlp", latent_channels=2, width=8),
    )  # fmt: skip


def test_what_differs_is_named_and_nothing_is_where_nothing_is_known() -> None:
    before = {"python": "3.11.1", "torch": "2.8.0", "ray": "2.50.0"}
    now = {"python": "3.11.1", "torch": "2.9.0", "numpy": "2.0"}
    assert changes(before, now) == [
        "numpy 2.0, was not there", "ray gone, was 2.50.0", "torch 2.9.0, was 2.8.0",
    ]  # fmt: skip
    assert changes({}, now) == []
    assert changes(now, now) == []
    assert torch.__version__.startswith(versions_here()["torch"].split("+")[0])


def test_a_start_keeps_the_versions_and_the_next_one_says_what_has_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = pack_digits(tmp_path)
    run_training(config(dataset, 2))
    run = Run.at(config(dataset, 2))
    kept = storage.read_json(run.path("attempts", "000001.000.json"))["versions"]
    assert kept == versions_here()
    assert {"python", "torch", "ray", "numpy"} <= kept.keys()
    with caplog.at_level(logging.WARNING):
        run_training(config(dataset, 3))
        assert "other software" not in caplog.text
        monkeypatch.setattr(run_module, "versions_here", lambda: {**kept, "torch": "1.0.0"})
        run_training(config(dataset, 4))
        run_training(config(dataset, 5))
    assert f"torch {kept['torch']}, was 1.0.0" in caplog.text


def resealed(data: bytes, version: int) -> bytes:
    """The same document as another version of its format, with a checksum that fits."""
    value = {**json.loads(data), "version": version}
    del value["checksum"]
    rest = storage.canonical_json(value)[1:]
    return b'{"checksum":"' + hashlib.sha256(rest).hexdigest().encode() + b'",' + rest


@pytest.mark.parametrize(
    "name",
    [
        "run.json", "result.json", "attempts/000001.000.json",
        "checkpoints/step-00000002.json", "history/*.json",
    ],
)  # fmt: skip
def test_a_run_of_another_format_is_refused_by_name_before_anything_is_written(
    tmp_path: Path, name: str
) -> None:
    dataset = pack_digits(tmp_path)
    run_training(config(dataset, 2))
    folder = tmp_path / "runs/r"
    path = sorted(folder.glob(name))[-1]
    path.write_bytes(resealed(path.read_bytes(), 99))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(
        PipelineError, match=rf"{path.name}: is 'vae-pipeline/\S+' version 99; this"
    ):
        run_training(config(dataset, 3))
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert {name for name in changed if not name.startswith("mlflow")} == set()


def test_a_dataset_of_another_format_is_refused_by_name_before_a_run_is_made(
    tmp_path: Path,
) -> None:
    dataset = pack_digits(tmp_path)
    manifest = next((dataset / "manifests").iterdir())
    pointer = dataset / "manifest.json"
    pointer.write_bytes(resealed(pointer.read_bytes(), 99))
    with pytest.raises(PipelineError, match=r"manifest.json: is 'vae-pipeline/dataset' version 99"):
        run_training(config(dataset, 2))
    assert not (tmp_path / "runs").exists()
    assert manifest.exists()
    with pytest.raises(PipelineError, match="version 99"):
        Dataset.open(str(dataset))
