import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import jobs.train
from jobs.command import parse_flags, validate
from jobs.train import main as train_job
from pipeline.commands.sweep import parse_sweep, run_sweep
from pipeline.config import EvaluateConfig, ObjectiveConfig, TrainConfig
from pipeline.errors import ConfigError
from pipeline.registry.models import resolve
from pipeline.tracking.mlflow_client import mlflow_client, tracking_uri
from tests.support import warm
from tests.support.digit_models import pack_digits, write_digits


@pytest.fixture(autouse=True)
def _mlflow_of_its_own(mlflow_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)


def config(folder: Path, sweep: str) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "data": str(folder / "data"),
            "holdout": str(folder / "data"),
            "run": "weights",
            "sweep": sweep,
            "storage": str(folder / "runs"),
            "steps": 40,
            "global_batch_size": 60,
            "image_size": 8,
            "channels": 1,
            "workers": 0,
            "model": {"kind": "mlp", "latent_channels": 4, "width": 32},
            "optimizer": {"learning_rate": 3e-3},
        }
    )


def test_a_larger_kl_weight_lowers_the_rate_and_the_best_elbo_gets_the_alias(
    tmp_path: Path,
) -> None:
    asked = config(write_digits(tmp_path), "objective.beta=0,1,1000")
    result = run_sweep(asked)
    rates = [row.rate for row in result.rows if row.rate is not None]
    assert len(rates) == 3
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1] + 1
    for row in result.rows:
        assert row.rate is not None
        assert row.distortion is not None
        assert row.elbo == pytest.approx(-row.rate - row.distortion, rel=1e-5)
    best = max(result.rows, key=lambda row: row.elbo or -math.inf)
    assert (result.best.run, result.best.model_version) == (best.run, best.model_version)
    assert resolve(str(result.best.model)).version == best.model_version
    (picture,) = result.figures
    said = jobs.train._after_sweep(asked, result)
    assert f"rate against distortion: {picture}" in said
    (line,) = [line for line in said if line.startswith("All runs side by side")]
    command = shlex.split(line.split("`")[1].removeprefix("vae evaluate "))
    beside = validate(EvaluateConfig, parse_flags(EvaluateConfig, command, "")[0])
    assert (beside.model, beside.data) == (best.run, asked.holdout)
    assert {best.run, *beside.compare} == {row.run for row in result.rows}
    assert "`vae encode --model models:/" in said[-1]
    assert Image.open(picture).format == "PNG"
    client = mlflow_client(tracking_uri())
    tags = [client.get_run(row.run_id).data.tags for row in result.rows]
    parents = {each["mlflow.parentRunId"] for each in tags}
    assert len(parents) == 1
    for row, each in zip(result.rows, tags, strict=True):
        # The kept weights' step, which the newest point need not be of.
        assert each["vae.chosen_step"] in ("0", "40")
        name = resolve(str(result.best.model)).name
        version = client.get_model_version(name, str(row.model_version))
        assert version.tags["step"] == each["vae.chosen_step"]
    assert parents.isdisjoint(row.run_id for row in result.rows)
    assert run_sweep(asked).rows == result.rows


def test_a_value_that_diverged_has_its_row_and_the_best_of_the_others_gets_the_alias(
    tmp_path: Path,
) -> None:
    asked = config(write_digits(tmp_path), "optimizer.learning_rate=0.003,1e8")
    asked = asked.model_copy(update={"steps": 6, "objective": ObjectiveConfig(beta=2)})
    outcome = train_job(asked)
    result: Any = outcome.result
    calm, wild = result["sweep"]
    assert (wild["elbo"], wild["distortion"], wild["model_version"]) == (None, None, None)
    assert result["run"] == calm["run"]
    assert resolve(result["model"]).version == calm["model_version"]
    assert "diverged" in outcome.summary[2]


def test_values_are_read_as_yaml() -> None:
    assert parse_sweep("objective.beta=0.5,1,4") == ("objective.beta", [0.5, 1, 4])
    assert parse_sweep("model.kind=mlp,conv") == ("model.kind", ["mlp", "conv"])


@pytest.mark.parametrize("text", ["objective.beta", "objective.beta=1", "=1,2", "seed=3,3"])
def test_what_is_no_sweep_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not KEY=A,B"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("sweep", "said"), [("objective.bete=1,2", "no such knob"), ("objective.beta=1,-2", "greater")]
)
def test_a_wrong_knob_or_value_is_refused_before_anything_trains(
    tmp_path: Path, sweep: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_sweep(config(tmp_path, sweep))
    assert not (tmp_path / "runs").exists()


def test_a_sweep_without_a_holdout_is_refused_before_anything_trains(tmp_path: Path) -> None:
    data = pack_digits(tmp_path)
    command = ("jobs.train", "--data", str(data), "--run", "weights", "--storage")
    knobs = ("--workers", "0", "--sweep", "objective.beta=0.5,1")
    ended = warm.run(tmp_path, *command, str(tmp_path / "runs"), *knobs)
    assert (ended.returncode, ended.stdout) == (2, "")
    (error,) = ended.stderr.splitlines()
    assert error.startswith("ConfigError: --sweep objective.beta: ")
    assert "Give `--holdout URL`" in error
    assert not (tmp_path / "runs").exists()
