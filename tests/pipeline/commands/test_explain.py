import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.commands.explain import deviation, run_explanation
from pipeline.config import ExplainConfig, ObjectiveConfig, PackConfig
from pipeline.errors import ConfigError, DatasetError, RunError
from pipeline.json_value import Json
from pipeline.packing.pack import pack
from pipeline.runs.run import RUN, Run
from pipeline.vae import ObjectiveState, optimised, save_bundle
from tests.support.digit_models import digits_vae, sigma_of, write_digits
from tests.support.rayjobs import result_of


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def test_a_finished_run_is_explained_with_its_own_beta_and_hold_out(place: Path) -> None:
    run = Run(str(place / "runs" / "mine"))
    objective = optimised(ObjectiveConfig(beta=500.0), 9, ObjectiveState()).to_json()
    metadata: Json = {"objective": objective, "step": 9}
    digest = save_bundle(digits_vae(beta=500.0), run.path("bundle"), metadata)
    config = {"run": "mine", "data": str(place / "data"), "holdout": str(place / "data")}
    opened = {"config": config, "dataset_digest": "of before", "holdout_digest": None}
    storage.publish(run.path("run.json"), RUN.encode(opened))
    run.finish(replace(result_of(run, "done", 9), bundle=run.path("bundle"), digest=digest))
    asked = ExplainConfig(run="mine", storage=str(place / "runs"), importance_samples=8)
    result: Any = run_explanation(asked).to_json()
    assert result["answers"]["weight"]["beta"] == 500.0
    assert result["step"] == 9
    assert result["data"] == str(place / "data")


def test_a_run_that_is_not_there_and_a_model_without_data_are_refused(place: Path) -> None:
    with pytest.raises(RunError, match="is no finished run"):
        run_explanation(ExplainConfig(run="other", storage=str(place)))
    with pytest.raises(ConfigError, match="--model needs `--data URL`"):
        run_explanation(ExplainConfig(model=str(place / "vae")))


def test_of_a_bundle_that_does_not_say_what_was_optimised_nothing_is_claimed(place: Path) -> None:
    asked = ExplainConfig(model=str(place / "vae"), data=str(place / "data"), importance_samples=8)
    result: Any = run_explanation(asked).to_json()
    assert "weight" not in result["answers"]
    assert set(result["checks"]) == set(result["answers"])


def test_a_single_image_is_refused_as_it_has_no_intervals(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(next((place / "images").rglob("*.png")), images / "one.png")
    pack(PackConfig(source=(str(images),), output=str(tmp_path / "data"), workers=1))
    with pytest.raises(DatasetError, match="one image has no intervals"):
        run_explanation(ExplainConfig(model=str(place / "vae"), data=str(tmp_path / "data")))


def test_a_bernoulli_has_no_deviation_and_a_gaussian_has_its_own() -> None:
    assert deviation(digits_vae("bernoulli")) is None
    assert deviation(digits_vae()) == sigma_of(digits_vae()).item()
