"""The registry as its users see it: MLflow on sqlite, bundles made here, figures measured twice."""

from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

import pipeline
from jobs.models import main
from pipeline.commands.encode import run_encoding
from pipeline.commands.evaluate import run_evaluation
from pipeline.commands.train import run_training
from pipeline.config import (
    EncodeConfig,
    EvaluateConfig,
    ModelConfig,
    ModelsConfig,
    PreprocessConfig,
    TrainConfig,
)
from pipeline.errors import ModelError, PipelineError
from pipeline.exchange.diffusers_folder import read_diffusers, write_diffusers
from pipeline.latent_scale import LatentScale
from pipeline.registry.models import RegisteredModel, load_model, pull, version_tags
from pipeline.vae import build_vae, save_bundle
from tests.support.packed_digits import write_digits


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_digits(tmp_path_factory.mktemp("data"), 60))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def name(uri: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return request.node.name[:40]


@pytest.fixture
def models(name: str) -> Any:
    """`jobs.models` with some flags; this test's model beside what was asked for."""

    def ask(**asked: Any) -> dict[str, Any]:
        result: Any = main(ModelsConfig(model=f"{name}@candidate", **asked)).result
        found = [m for m in result.get("models", ()) if m["name"] == name]
        return {**result, "models": found}

    return ask


def bundle(folder: Path, seed: int, **model: Any) -> str:
    torch.manual_seed(seed)
    vae = build_vae(ModelConfig(kind="linear", **model), PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, folder / f"bundle-{seed}")
    return str(folder / f"bundle-{seed}")


def aliases(result: dict[str, Any]) -> dict[str, int]:
    (model,) = result["models"]
    return {alias: row["version"] for row in model["versions"] for alias in row["aliases"]}


def test_registering_a_folder_twice_gives_one_version(
    models: Any, name: str, tmp_path: Path
) -> None:
    url = bundle(tmp_path, 0)
    assert models(register=url)["registered"] == f"models:/{name}/1"
    again = models(register=url)
    assert again["registered"] == f"models:/{name}/1"
    assert len(again["models"][0]["versions"]) == 1
    assert models(register=bundle(tmp_path, 1))["registered"] == f"models:/{name}/2"


def test_a_bundle_that_is_not_the_registered_one_is_neither_loaded_nor_copied(
    models: Any, name: str, tmp_path: Path, uri: str
) -> None:
    models(register=bundle(tmp_path, 0))
    mlflow.MlflowClient(uri, uri).set_model_version_tag(name, "1", "digest", "0" * 64)
    with pytest.raises(ModelError, match="asked for was 0000"):
        load_model(f"models:/{name}/1")
    with pytest.raises(ModelError, match="somebody replaced it"):
        pull(f"models:/{name}/1", str(tmp_path / "pulled"))
    assert not (tmp_path / "pulled").exists()


def test_the_better_of_two_becomes_champion_whichever_is_asked_first(
    models: Any, name: str, tmp_path: Path, data: str
) -> None:
    urls = [bundle(tmp_path, seed) for seed in (0, 1)]
    for url in urls:
        models(register=url)
    # `jobs.evaluate` measures by other code, with other noise: only the order must agree.
    elbos = [run_evaluation(EvaluateConfig(model=url, data=data)).numbers.elbo for url in urls]
    assert abs(elbos[0] - elbos[1]) > 1, "too close to tell"
    better, worse = (1, 2) if elbos[0] > elbos[1] else (2, 1)
    models(promote=f"models:/{name}/{worse}", data=data)
    result = models(promote=f"models:/{name}/{better}", data=data)
    assert aliases(result)["champion"] == better
    with pytest.raises(ModelError, match="does not beat the champion's"):
        models(promote=f"models:/{name}/{worse}", data=data)
    assert aliases(models())["champion"] == better
    assert aliases(models(rollback=name))["champion"] == worse
    with pytest.raises(ModelError, match="no champion before"):
        models(rollback=name)


def test_without_figures_nothing_is_promoted(models: Any, name: str, tmp_path: Path) -> None:
    models(register=bundle(tmp_path, 0))
    with pytest.raises(ModelError, match="Give `--data HOLDOUT`"):
        models(promote=f"models:/{name}/1")


def test_an_elbo_of_the_binarised_image_is_never_set_against_one_of_256_levels(
    models: Any, name: str, tmp_path: Path, data: str
) -> None:
    models(register=bundle(tmp_path, 0))
    models(register=bundle(tmp_path, 1, likelihood="bernoulli"))
    models(promote=f"models:/{name}/1", data=data)
    with pytest.raises(ModelError, match="measure is binarised image against 256 levels"):
        models(promote=f"models:/{name}/2", data=data)


def test_figures_of_two_holdouts_are_not_compared(
    models: Any, name: str, tmp_path: Path, data: str, uri: str
) -> None:
    for seed in (0, 1):
        models(register=bundle(tmp_path, seed))
    models(promote=f"models:/{name}/1", data=data)
    other = write_digits(tmp_path / "other", 40)
    # Measured alone, as a run does it; a name of its own has no champion to beat yet.
    main(ModelsConfig(model="apart@candidate", register=f"{tmp_path}/bundle-1"))
    main(ModelsConfig(promote="models:/apart/1", data=str(other)))
    figures = version_tags(RegisteredModel("apart", 1, ""))
    client = mlflow.MlflowClient(uri, uri)
    for tag in ("holdout_digest", "holdout_elbo"):
        client.set_model_version_tag(name, "2", tag, figures[tag])
    with pytest.raises(ModelError, match=r"holdout_digest is .* Give `--data HOLDOUT`"):
        models(promote=f"models:/{name}/2")


def test_a_model_whose_elbo_is_no_number_never_becomes_champion(
    models: Any, name: str, tmp_path: Path, uri: str
) -> None:
    client = mlflow.MlflowClient(uri, uri)
    for seed, elbo in ((0, "nan"), (1, "-5.0")):
        models(register=bundle(tmp_path, seed))
        client.set_model_version_tag(name, str(seed + 1), "holdout_elbo", elbo)
    for _ in range(2):  # as the first champion, and against one
        with pytest.raises(ModelError, match="no held-out ELBO"):
            models(promote=f"models:/{name}/1")
        models(promote=f"models:/{name}/2")


def test_the_lineage_of_a_version_names_the_stores_that_were_made_with_it(
    models: Any, name: str, tmp_path: Path, data: str
) -> None:
    models(register=bundle(tmp_path, 0))
    store = str(tmp_path / "store")
    run_encoding(EncodeConfig(model=f"models:/{name}@candidate", data=data, output=store, actors=0))
    found = models(lineage=f"models:/{name}@candidate")
    assert (found["model"], found["stores"]) == (f"models:/{name}/1", [store])


def test_a_diffusers_folder_is_registered_as_a_bundle_of_ours(
    models: Any, name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = ModelConfig(kind="autoencoder_kl", factor=4, width=32)
    vae = build_vae(config, PreprocessConfig(image_size=16))
    vae.scale = LatentScale(0.18215, force_upcast=True)
    write_diffusers(vae, tmp_path / "theirs")
    assert models(register=str(tmp_path / "theirs"))["registered"] == f"models:/{name}/1"
    loaded = load_model(f"models:/{name}/1")
    images = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(loaded.encode(images).mean, vae.eval().encode(images).mean)
    assert loaded.scale == vae.scale
    assert loaded.digest == pipeline.load_model(str(tmp_path / "theirs")).digest
    back = str(tmp_path / "back")
    outcome = main(ModelsConfig(export="diffusers", model=f"models:/{name}/1", output=back))
    assert outcome.result["digest"] == loaded.digest
    assert "scaling_factor 0.18215" in outcome.summary[1]
    assert read_diffusers(back).digest == read_diffusers(str(tmp_path / "theirs")).digest


def test_load_model_init_and_register_say_the_same_of_the_same_folder(
    models: Any, tmp_path: Path, data: str
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text('{"_class_name": "AutoencoderKLWan"}')
    given = {"data": data, "run": "r", "storage": str(tmp_path), "workers": 0, "image_size": 8}
    train = TrainConfig(init=str(folder), **given)
    said = []
    for ask in (
        lambda: pipeline.load_model(str(folder)),
        lambda: models(register=str(folder)),
        lambda: run_training(train),
    ):
        with pytest.raises(PipelineError) as raised:
            ask()
        said.append(str(raised.value))
    assert "AutoencoderKLWan" in said[0]
    assert len(set(said)) == 1


def test_who_only_looks_is_told_where_and_makes_no_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (told,) = main(ModelsConfig()).summary
    assert f"No model yet in MLflow at sqlite:///{tmp_path}/runs/mlflow.db" in told
    assert "`export MLFLOW_TRACKING_URI=URI`" in told
    with pytest.raises(ModelError, match="has no model 'first'; its models: none"):
        main(ModelsConfig(lineage="models:/first/1"))
    with pytest.raises(ModelError, match="has no model 'first'"):
        load_model("models:/first@candidate")
    assert list(tmp_path.iterdir()) == []
