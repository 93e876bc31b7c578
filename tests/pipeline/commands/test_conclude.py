"""A finished run as MLflow's users look for it: kind, dataset, tags, description, pictures."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

import pipeline
from pipeline.commands.conclude import deliver
from pipeline.commands.train import resolve
from pipeline.config import TrainConfig
from pipeline.data import Dataset
from pipeline.runs.run import Run
from tests.support.packed_digits import write_digits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("concluded")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return write_digits(folder, 120)


SETTINGS = {
    "steps": 4, "global_batch_size": 16, "workers": 0, "image_size": 8, "channels": 1,
    "model": {"kind": "mlp"},
}  # fmt: skip


def test_mlflow_knows_what_a_run_read_who_started_it_and_what_came_out(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = pipeline.train(str(data), run="told", **SETTINGS)
    assert run.run_id is not None
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    found = client.get_run(run.run_id)
    kind = client.get_experiment(found.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    tags = found.data.tags
    assert tags["vae.chosen_step"] == str(run.chosen_step)
    assert tags["mlflow.user"]
    assert tags["mlflow.source.git.commit"]
    assert "mlp VAE of images 1 x 8 x 8" in tags["mlflow.note.content"]
    inputs = {one.tags[0].value: one.dataset for one in found.inputs.dataset_inputs}
    for context, url in (("training", data), ("evaluation", data.parent / "holdout")):
        there = Dataset.open(str(url))
        assert there.digest.startswith(inputs[context].digest)
        assert json.loads(inputs[context].profile)["num_rows"] == len(there)
    pictures = {artifact.path for artifact in client.list_artifacts(run.run_id, "figures")}
    for name in ("reconstructions.png", "samples.png", "latent_means.png", "training_curves.png"):
        assert f"figures/{name}" in pictures
        path = client.download_artifacts(run.run_id, f"figures/{name}")
        assert min(Image.open(io.BytesIO(Path(path).read_bytes())).size) > 200
    assert "pipeline.load_model" in client.get_registered_model("told").description
    assert "weights of step" in client.get_model_version("told", "1").description


def test_a_trial_stays_out_of_the_registry_until_it_is_asked_for_without(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = pipeline.train(str(data), run="trial", no_register=True, **SETTINGS)
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    assert (run.reason, run.model, run.model_version) == ("done", None, None)
    assert "trial" not in {model.name for model in client.search_registered_models()}
    assert run.run_id is not None
    assert client.list_artifacts(run.run_id, "figures")
    path = client.download_artifacts(run.run_id, "config.json")
    assert json.loads(Path(path).read_text())["loader"]["bad_fraction"] == 0.001
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert run.bundle is not None
    assert pipeline.load_model(run.bundle).digest == run.digest
    again = pipeline.train(str(data), run="trial", **SETTINGS)
    assert again.model == "models:/trial@candidate"
    assert client.get_model_version("trial", "1").run_id == run.run_id


def test_a_model_that_a_restored_registry_lacks_is_registered_again_with_alias_and_elbo(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The database as it was before the run's end, or before it began."""
    monkeypatch.chdir(folder)
    database, older = folder / "runs/mlflow.db", folder / "older.db"
    pipeline.train(str(data), run="before", **SETTINGS)
    shutil.copy(database, older)
    first = pipeline.train(str(data), run="restored", **SETTINGS)
    assert pipeline.train(str(data), run="restored", **SETTINGS) == first
    assert "as after a restore" not in caplog.text
    shutil.copy(older, database)
    again = pipeline.train(str(data), run="restored", **SETTINGS)
    assert "as after a restore" in caplog.text
    client = MlflowClient(f"sqlite:///{database}")
    found = client.get_model_version_by_alias("restored", "candidate")
    assert (again.model, again.digest) == (first.model, first.digest)
    assert found.tags["digest"] == first.digest
    assert first.holdout_after is not None
    assert float(found.tags["holdout_elbo"]) == first.holdout_after["elbo"]
    assert client.get_run(str(found.run_id)).info.status == "FINISHED"
    assert pipeline.load_model("models:/restored@candidate").digest == first.digest


def test_a_model_whose_data_are_gone_is_registered_all_the_same(
    folder: Path, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    run = pipeline.train(str(data), run="kept", tracking={"model": "kept"}, **SETTINGS)
    result = Path(run.run.removeprefix("file://")) / "result.json"
    assert result.exists()
    # As a start that was killed between its end and the registry left it, and then the data went.
    config = resolve(TrainConfig.model_validate({"data": str(data), "run": "kept", **SETTINGS}))
    (data / "manifest.json").rename(data / "away.json")
    (data / "manifests").rename(data / "gone")
    try:
        again = deliver(config, Run.at(config), replace(run, model=None, model_version=None))
    finally:
        (data / "away.json").rename(data / "manifest.json")
        (data / "gone").rename(data / "manifests")
    assert again.model is not None
    assert "gets no pictures of the model" in caplog.text
