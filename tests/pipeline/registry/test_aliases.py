"""What `candidate` means, on a real MLflow server; a store is never changed to another model."""

import logging
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from pydantic import ValidationError

from pipeline.commands.encode import run_encoding
from pipeline.commands.train import run_training
from pipeline.config import (
    EncodeConfig,
    ModelConfig,
    ModelsConfig,
    PreprocessConfig,
    TrackingConfig,
    TrainConfig,
)
from pipeline.errors import ConfigError
from pipeline.latents import LatentStore
from pipeline.registry import promotion
from pipeline.registry.catalogue import register_folder
from pipeline.registry.models import RegisteredModel, resolve
from pipeline.registry.promotion import place_alias
from pipeline.vae import build_vae, save_bundle
from tests.servers.mlflow import MlflowServer
from tests.support.packed_digits import write_digits


@pytest.fixture
def client(mlflow_server: MlflowServer) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(mlflow_server.uri, mlflow_server.uri)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of this test's own: the server is shared."""
    return request.node.name[:40]


def bundle(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    vae = build_vae(ModelConfig(kind="linear"), PreprocessConfig(image_size=8, channels=1))
    save_bundle(vae, folder / f"bundle-{seed}")
    return str(folder / f"bundle-{seed}")


def version(client: Any, name: str, run: str = "r", **tags: str) -> RegisteredModel:
    """A new version with these tags, as a training would have left them."""
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    terms = {"holdout_digest": "h", "preprocess": "{}", "measure": "256 levels", "run": run}
    made = client.create_model_version(name, "s3://models/nowhere", tags={**terms, **tags})
    return RegisteredModel(name, int(made.version), "s3://models/nowhere")


def candidate(client: Any, name: str) -> int:
    return int(client.get_model_version_by_alias(name, "candidate").version)


def test_the_candidate_moves_to_a_better_version_on_equal_terms_and_to_no_other(
    client: mlflow.MlflowClient, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert place_alias(version(client, name, holdout_elbo="-100.0"), None) == "candidate"
    assert place_alias(version(client, name, holdout_elbo="-90.0"), None) == "candidate"
    assert candidate(client, name) == 2
    others: list[dict[str, str]] = [
        {"holdout_elbo": "-95.0"},
        {"holdout_elbo": "-90.0"},
        {"holdout_elbo": "nan"},
        {},
        {"holdout_elbo": "-10.0", "holdout_digest": "another"},
        {"holdout_elbo": "-10.0", "preprocess": '{"image_size": 32}'},
        {"holdout_elbo": "-10.0", "measure": "binarised image"},
    ]
    with caplog.at_level(logging.WARNING):
        for tags in others:
            assert place_alias(version(client, name, **tags), None) is None, tags
    assert candidate(client, name) == 2
    assert len([r for r in caplog.records if "stays version 2" in r.getMessage()]) == len(others)


def test_an_alias_that_is_named_moves_whatever_it_meant(
    client: mlflow.MlflowClient, name: str
) -> None:
    place_alias(version(client, name, holdout_elbo="-100.0"), None)
    worse = version(client, name, holdout_elbo="-500.0")
    assert place_alias(worse, "candidate") == "candidate"
    assert candidate(client, name) == 2


def test_without_a_hold_out_the_candidate_follows_its_own_run_alone(
    client: mlflow.MlflowClient, name: str
) -> None:
    place_alias(version(client, name, run="a"), None)
    assert place_alias(version(client, name, run="a"), None) == "candidate"
    assert place_alias(version(client, name, run="b"), None) is None
    assert candidate(client, name) == 2


@pytest.mark.parametrize("sleeper", [2, 3])
def test_of_two_that_end_at_once_the_better_one_is_the_candidate(
    client: mlflow.MlflowClient, name: str, sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sleeps between its look at the candidate and its move, while the other does both."""
    place_alias(version(client, f"{name}-{sleeper}", holdout_elbo="-100.0"), None)
    made = {n: version(client, f"{name}-{sleeper}", holdout_elbo=f"-9{n}.0") for n in (2, 3)}
    point, other = promotion._point, made[5 - sleeper]

    def late(model: RegisteredModel, alias: str) -> None:
        monkeypatch.setattr(promotion, "_point", point)
        place_alias(other, None)
        point(model, alias)

    monkeypatch.setattr(promotion, "_point", late)
    assert place_alias(made[sleeper], None) == ("candidate" if sleeper == 2 else None)
    assert candidate(client, f"{name}-{sleeper}") == 2


def test_a_run_names_its_model_and_a_short_trial_takes_no_alias_from_a_longer_run(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    data = str(write_digits(tmp_path, 200))

    def train(run: str, steps: int, model: str | None = None) -> str | None:
        config = TrainConfig(
            data=data, run=run, storage=str(tmp_path / "runs"), steps=steps, global_batch_size=32,
            image_size=8, channels=1, workers=0, model=ModelConfig(kind="linear"),
            tracking=TrackingConfig(model=model),
        )  # fmt: skip
        return run_training(config).model

    assert train("long", 60) == "models:/long@candidate"
    assert train("trial", 2) == "models:/trial@candidate"
    assert train("trial-in-it", 2, "long") == "models:/long/2"
    assert candidate(client, "long") == 1
    assert train("named", 2, "long@candidate") == "models:/long@candidate"
    assert candidate(client, "long") == 3


def test_importing_a_model_moves_no_alias_but_one_that_is_named(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    first = register_folder(bundle(tmp_path, 0))
    assert first.uri == "models:/bundle-0/1"
    assert dict(client.get_registered_model("bundle-0").aliases) == {}
    register_folder(bundle(tmp_path, 1), "theirs")
    register_folder(bundle(tmp_path, 0), "theirs@candidate")
    register_folder(bundle(tmp_path, 1), "theirs")
    assert candidate(client, "theirs") == 2


def test_a_store_of_another_model_is_refused_until_it_is_told(
    client: mlflow.MlflowClient, tmp_path: Path
) -> None:
    data, store = str(write_digits(tmp_path, 60)), str(tmp_path / "store")
    one, two = bundle(tmp_path, 0), bundle(tmp_path, 1)

    def encode(model: str, *, replace: bool = False) -> None:
        run_encoding(
            EncodeConfig(model=model, data=data, output=store, actors=0, replace_model=replace)
        )

    encode(one)
    before = LatentStore.open(store).model_digest
    encode(one)
    with pytest.raises(ConfigError, match=r"is of the model .*bundle-0.*--replace-model"):
        encode(two)
    assert LatentStore.open(store).model_digest == before
    encode(two, replace=True)
    assert LatentStore.open(store).model_digest != before
    with pytest.raises(ConfigError, match="bundle-1"):
        encode(one)


def test_an_alias_is_resolved_to_the_version_that_it_means(
    client: mlflow.MlflowClient, name: str
) -> None:
    place_alias(version(client, name, holdout_elbo="-100.0"), None)
    assert resolve(f"models:/{name}@candidate").version == 1


def test_no_training_and_no_import_names_the_champion() -> None:
    with pytest.raises(ValidationError, match="the champion is whoever beats it"):
        TrackingConfig(model="photos@champion")
    with pytest.raises(ValidationError, match=r"jobs\.models --promote models:/photos/VERSION"):
        ModelsConfig(register="runs/bundle", model="photos@champion")
