"""The documents' own commands, in their order, on a folder of small pictures; and their Python."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from pipeline.config import ModelConfig, PreprocessConfig
from pipeline.exchange.diffusers_folder import write_diffusers
from pipeline.latent_scale import LatentScale
from pipeline.latents import LatentStore
from pipeline.vae import build_vae
from tests.docs.blocks import ROOT, blocks
from tests.support.warm import run

README, TRAINING, LATENTS = (
    ROOT / name for name in ("README.md", "docs/training.md", "docs/latents.md")
)
pytestmark = pytest.mark.slow
SMALL = {
    "train": ["--steps", "3", "--workers", "0", "--global-batch-size", "8", "--model.width", "8"],
    "encode": ["--actors", "0"],
    "evaluate": ["--importance-samples", "2", "--bound-images", "0"],
}
"""What makes a job short; all else is as written."""


def commands(page: Path) -> list[list[str]]:
    """Each `vae NAME ...` of a page's bash blocks, as words."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [
        shlex.split(line, comments=True)[1:] for line in text.splitlines() if line[:4] == "vae "
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/cats/001.jpg` to `photos/dogs/040.jpg`: stripes, each of its own colour."""
    place: Path = tmp_path_factory.mktemp("documents")
    colours = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (place / "photos" / label).mkdir(parents=True)
        for number in range(1, 41):
            pixels = np.repeat(colours.integers(0, 256, (8, 1, 3), dtype=np.uint8), 10, axis=0)
            image = Image.fromarray(np.repeat(pixels, 96, axis=1))
            image.save(place / "photos" / label / f"{number:03d}.jpg")
    torch.manual_seed(0)
    small = ModelConfig(kind="autoencoder_kl", widths=(4, 8), groups=2)
    published = build_vae(small, PreprocessConfig(image_size=16))
    published.scale = LatentScale(scaling_factor=0.13025, force_upcast=True)
    write_diffusers(published, place / "downloads/sdxl")
    return place


@pytest.fixture(scope="module")
def job(folder: Path) -> Callable[[list[str]], str]:
    """Runs a command there; it must end with 0. Returns what it printed."""

    def start(words: list[str]) -> str:
        name, *flags = words
        ended = run(folder, f"jobs.{name}", *flags, *SMALL.get(name, []))
        assert ended.returncode == 0, f"vae {shlex.join(words)}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    return start


@pytest.fixture(scope="module")
def way(job: Callable[[list[str]], str]) -> dict[str, str]:
    """README's own images, from pack to verify: what each command printed."""
    return {words[0]: job(words) for words in commands(README)}


def test_the_readmes_way_goes_from_a_folder_to_a_verified_store(way: dict[str, str]) -> None:
    assert list(way) == ["pack", "train", "evaluate", "encode", "verify"]
    assert "80 seen = 80 packed" in way["pack"]
    assert way["verify"].splitlines()[0] == "runs/latents: whole."


def test_the_readmes_python_reads_what_the_commands_made(
    way: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs/mlflow.db")
    names: dict[str, Any] = {}
    (text,) = blocks(README, "python")
    exec(text, names)
    assert len(names["store"]) == len(list(names["store"].keys())) > 60
    assert names["vae"].digest == names["store"].model_digest
    assert names["batch"].images.shape[1:] == (3, 64, 64)


def test_the_training_pages_python_runs_in_small(
    way: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs/mlflow.db")
    (text,) = blocks(TRAINING, "python")
    asked = 'steps=300, model={"width": 48}'
    assert asked in text
    small = text.replace(asked, 'steps=3, workers=0, global_batch_size=8, model={"width": 8}')
    # What follows sets MLflow's address for this whole process.
    ours, _, _ = small.partition("mlflow.set_tracking_uri")
    names: dict[str, Any] = {}
    exec(ours, names)
    assert names["vae"].image_shape == (3, 64, 64)
    assert names["vae"].pixels(names["photos"][2:5]).shape == (3, 3, 64, 64)


def test_the_registrys_commands_promote_trace_and_pull(
    way: dict[str, str], job: Callable[[list[str]], str], folder: Path
) -> None:
    wanted = r"models( --promote \S+@candidate| --lineage.*)?|pull.*"
    found = [words for words in commands(TRAINING) if re.fullmatch(wanted, " ".join(words))]
    assert [words[0] for words in found] == ["models", "models", "models", "pull"]
    said = [job(words) for words in found]
    assert "champion" in said[1]
    assert (folder / "runs/pulled/bundle.json").exists()


def test_the_latents_pages_commands_and_python_run_on_that_store(
    way: dict[str, str],
    job: Callable[[list[str]], str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (promote,) = [words for words in commands(TRAINING) if words[1:2] == ["--promote"]][:1]
    job(promote)
    for words in commands(LATENTS):
        job(words)
    assert len(list((folder / "runs/walk").rglob("*.png"))) == 8  # --steps
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    first, ranks, others, similar = blocks(LATENTS, "python")
    exec(first, names)
    store = names["store"]
    assert len(names["torch_dataset"]) == len(store) == len(names["frame"])
    keys = list(store.keys())
    exec(similar, names)
    assert names["similar"][0].startswith("cats/001")
    assert len(names["pictures"]) == 10
    exec(ranks, names)
    assert {len(batch.keys) for batch in names["loader"]} == {128}
    assert list(names["older"].keys()) == keys
    assert list(names["cats"].keys()) == [key for key in keys if key.startswith("cats/")]
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        exec(others, names)
        rows = names["on_ray"].take_all()
    finally:
        ray.shutdown()
    table = names["in_datasets"][:]
    assert table["key"].to_pylist() == keys
    assert sorted(row["key"] for row in rows) == sorted(keys)
    assert {row["label"] for row in rows} == set(table["label"].to_pylist()) == {"cats", "dogs"}
    np.testing.assert_array_equal(names["means"](table)[5], store[5].tensors["mean"])
    one = LatentStore.open("runs/sizes", size=128)
    assert one.shapes == ((4, 64, 64),)
    buckets = LatentStore.open("runs/buckets")
    # Every picture is of 96 x 80 pixels: a square of 256 is nearer than 320 x 192.
    assert {latent.tensors["mean"].shape for latent in buckets} == {(4, 64, 64)}
    assert buckets[0].columns["original_size"] == [80, 96]
