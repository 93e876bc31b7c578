"""What a place holds, and that nothing of another kind is put there or removed with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline
from jobs.runs import main as runs
from pipeline.commands.encode import cost_of_encoding
from pipeline.config import EncodeConfig, IndexConfig, RunsConfig
from pipeline.data.manifest import POINTER as DATASET
from pipeline.errors import ConfigError
from pipeline.latents.receipt import POINTER as STORE
from pipeline.packing.adopt import adopt
from pipeline.packing.ledger import STATE
from pipeline.places import _MARKS
from pipeline.vae.bundle import RECEIPT, save_bundle
from tests.support.killing import tree
from tests.support.small_store import small_dataset, small_vae, write_images


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """One of each kind, each by its own job."""
    small_dataset(tmp_path / "made", range(8))
    data = str(next(tmp_path.rglob(DATASET)).parent)
    save_bundle(small_vae(), tmp_path / "model")
    pipeline.encode(str(tmp_path / "model"), data, output=str(tmp_path / "store"), actors=0)
    train(tmp_path, data, "run")
    return {
        "an image dataset": Path(data), "a latent store": tmp_path / "store",
        "a run": tmp_path / "run", "a model's bundle": tmp_path / "model",
    }  # fmt: skip


def train(storage: Path, data: str, run: str) -> Any:
    return pipeline.train(
        data=data, run=run, storage=str(storage), steps=2, workers=0, image_size=8, channels=1,
        model={"kind": "mlp", "width": 8, "latent_channels": 2}, global_batch_size=4,
        no_register=True,
    )  # fmt: skip


def test_the_names_are_those_of_the_rooms() -> None:
    assert {DATASET, STATE, STORE, RECEIPT, "run.json"} == set(_MARKS)


def test_nothing_is_put_where_something_of_another_kind_lies(
    places: dict[str, Path], tmp_path: Path
) -> None:
    write_images(tmp_path / "images", range(4))
    data, model = str(places["an image dataset"]), str(places["a model's bundle"])
    jobs: dict[str, Callable[[Path], object]] = {
        "an image dataset": lambda at: pipeline.pack(str(tmp_path / "images"), output=str(at)),
        "a latent store": lambda at: pipeline.encode(model, data, output=str(at), actors=0),
        "a run": lambda at: train(at.parent, data, at.name),
    }
    for own, job in jobs.items():
        for kind, place in places.items():
            if kind == own:
                continue
            before = tree(place)
            with pytest.raises(ConfigError, match=f"holds {kind}. {own.capitalize()} needs"):
                job(place)
            assert tree(place) == before
    with pytest.raises(ConfigError, match="holds a run"):
        adopt(IndexConfig(source=(data,), output=str(places["a run"])))
    asked = {"model": model, "data": data, "output": str(places["a run"])}
    with pytest.raises(ConfigError, match="holds a run"):
        cost_of_encoding(EncodeConfig.model_validate(asked))


def test_a_run_in_whose_folder_a_store_lies_is_not_removed_with_it(
    places: dict[str, Path], tmp_path: Path
) -> None:
    model, data = str(places["a model's bundle"]), str(places["an image dataset"])
    pipeline.encode(model, data, output=str(tmp_path / "run/latents"), actors=0)
    before = tree(tmp_path / "run")
    asked = RunsConfig(storage=str(tmp_path), run=("run",), remove="runs", delete=True)
    found = runs(asked)
    assert "run/latents: is a latent store inside this run" in "\n".join(found.summary)
    assert found.exit_code == 1
    assert tree(tmp_path / "run") == before
