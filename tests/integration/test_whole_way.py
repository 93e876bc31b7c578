"""The demo as a user starts it, then its model and its store as a consumer reads them."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import pipeline
from pipeline.latents import LatentStore
from tests.docs.blocks import ROOT, blocks
from tests.support.warm import run


def result_of(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def ended(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(folder, "jobs.demo", "--steps", "60")


@pytest.fixture(scope="module")
def demo(ended: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert "Traceback" not in ended.stderr
    return result_of(ended)


@pytest.fixture
def tracking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs/mlflow.db")


def test_the_demo_ends_with_a_verified_store_and_what_was_appended_is_in_it(
    demo: dict[str, Any],
) -> None:
    assert demo["verified"] is True
    # 60 of 1,797 digits come later; those that fall into the hold-out are not encoded.
    assert 0 < demo["appended"] <= 60
    assert demo["samples"] > demo["appended"]
    assert all(Path(figure).stat().st_size > 5_000 for figure in demo["figures"])


def test_the_demo_ends_with_the_lines_that_the_readme_shows(
    demo: dict[str, Any], ended: subprocess.CompletedProcess[str]
) -> None:
    (shown,) = [block for block in blocks(ROOT / "README.md", "") if "nats per image" in block]
    printed = [without_numbers(line) for line in ended.stdout.splitlines()]
    assert {without_numbers(line) for line in shown.splitlines()} - set(printed) == set()


def without_numbers(line: str) -> str:
    return re.sub(r"-?\d[\d,.]*|\s+", lambda found: "#" if found[0].strip() else " ", line)


def test_nothing_is_written_outside_runs(demo: dict[str, Any], folder: Path) -> None:
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_our_loader_and_mlflows_give_the_same_moments(demo: dict[str, Any], tracking: None) -> None:
    import mlflow

    vae = pipeline.load_model(demo["model"])
    images = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        posterior = vae.encode(images)
    moments = mlflow.pyfunc.load_model(demo["model"]).predict(images.numpy())
    expected = torch.cat([posterior.mean, posterior.log_variance], 1).numpy()
    np.testing.assert_allclose(moments, expected, rtol=1e-6, atol=1e-6)


def test_a_stored_latent_is_the_models_own_for_that_image(
    demo: dict[str, Any], tracking: None
) -> None:
    from pipeline.data import Dataset, load_images

    vae = pipeline.load_model(demo["model"])
    store = LatentStore.open(demo["store"])
    assert store.model_digest == vae.digest
    dataset = Dataset.open(str(Path(demo["store"]).parent / "dataset/train"))
    batch = load_images(dataset, 5, vae.preprocess)
    with torch.no_grad():
        means = vae.encode(batch.images).mean.numpy()
    stored = {store[number].key: store[number] for number in range(5)}
    for key, mean in zip(batch.keys, means, strict=True):
        np.testing.assert_allclose(stored[key].tensors["mean"], mean, rtol=2e-3, atol=2e-3)
        assert stored[key].columns["label"] == key.split("/")[0]


def test_the_stores_statistics_are_those_of_all_its_latents(demo: dict[str, Any]) -> None:
    store = LatentStore.open(demo["store"])
    means = np.concatenate([rows.tensors["mean"] for rows in store.batches()]).astype(np.float64)
    assert len(means) == len(store) == demo["samples"]
    np.testing.assert_allclose(store.mean, means.mean((0, 2, 3)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(store.std, means.std((0, 2, 3)), rtol=1e-9)


def test_plain_pyarrow_opens_a_latent_file(demo: dict[str, Any]) -> None:
    (file, *_) = sorted(Path(demo["store"]).glob("latents/*/*.arrow"))
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    assert table.column_names == ["key", "position", "mean", "logvar", "label"]
    assert table.schema.field("mean").type.value_type == pa.float16()


def test_pull_copies_the_bundle_twice_without_complaint_and_never_over_other_files(
    demo: dict[str, Any], folder: Path
) -> None:
    pull = ("jobs.pull", "--model", demo["model"], "--output", "runs/pulled")
    first, second = result_of(run(folder, *pull)), result_of(run(folder, *pull))
    assert first == second
    assert pipeline.load_model(str(folder / "runs/pulled")).digest == first["digest"]
    (folder / "runs/other").mkdir()
    (folder / "runs/other/precious").write_text("x")
    refused = run(folder, "jobs.pull", "--model", demo["model"], "--output", "runs/other")
    assert refused.returncode == 1
    assert "holds other files" in refused.stderr
    assert (folder / "runs/other/precious").read_text() == "x"


def test_an_alias_that_does_not_exist_is_answered_with_those_that_do(
    demo: dict[str, Any], folder: Path
) -> None:
    name = demo["model"].partition("@")[0]
    asked = run(folder, "jobs.pull", "--model", f"{name}@champion", "--output", "runs/no")
    assert asked.returncode == 1
    assert "it has: @candidate (version 1)" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_encoding_another_dataset_into_the_store_is_refused(
    demo: dict[str, Any], folder: Path
) -> None:
    dataset = Path(demo["store"]).parent / "dataset/holdout"
    refused = run(
        folder, "jobs.encode", "--model", demo["model"], "--data", str(dataset),
        "--output", demo["store"], "--actors", "0",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "another dataset" in refused.stderr


def test_a_run_is_explained_with_its_own_numbers_and_the_pictures_of_its_way(
    demo: dict[str, Any], folder: Path
) -> None:
    asked = ("--run", "runs/demo/digits-1/digits-1", "--output", "runs/page")
    explained = result_of(run(folder, "jobs.explain", *asked))
    kept = json.loads((folder / "runs/demo/digits-1/digits-1/result.json").read_text())
    assert explained["data"] == f"{kept['run'].rsplit('/', 1)[0]}/dataset/holdout"
    terms = explained["answers"]["elbo"]
    assert terms["elbo"] == pytest.approx(terms["log_likelihood"] - terms["kl"], rel=1e-6)
    pictures = {Path(figure).name for figure in explained["figures"]}
    assert {"training_curves.png", "pull.png", "progress.png"} <= pictures
    assert "(pull.png)" in (folder / "runs/page/explanation.md").read_text()
