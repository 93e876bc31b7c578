import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import jobs.evaluate
from pipeline.config import EvaluateConfig
from pipeline.errors import ConfigError, PipelineError
from tests.pipeline.training.digits import digits_vae, write_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def evaluate(place: Path, model: str = "vae", **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / model), "data": str(place / "data"), "importance_samples": 16}
    return dict(jobs.evaluate.main(EvaluateConfig.model_validate(config | knobs)).result)


def test_the_command_ends_with_one_json_line_that_holds_the_contracts_keys(place: Path):
    command = [sys.executable, "-m", "jobs.evaluate", "--model", place / "vae", "--data"]
    ended = subprocess.run(
        [*command, place / "data"], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    contract = "elbo log_likelihood kl bits_per_dim iwae posterior_gap active_units figures"
    assert set(contract.split()) <= set(result)
    assert result["images"] == 120
    assert result["model_digest"] == digits_vae().digest
    assert "posterior gap" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_pictures_and_report_lie_where_the_result_says(place: Path):
    result = evaluate(place, output=str(place / "report"), compare=(str(place / "collapsed"),))
    assert len(result["figures"]) == 9
    for url in result["figures"]:
        assert Image.open(url).format == "PNG"
    report = json.loads((place / "report" / "evaluation.json").read_text())
    assert report["elbo"] == result["elbo"]
    assert sum(report["kl_per_dimension"]) == pytest.approx(result["kl"], rel=1e-6)
    difference = result["comparison"]["differences"][str(place / "collapsed")]["elbo"]
    assert difference["high"] < 0


def test_models_of_different_measures_are_refused_with_the_reason(place: Path):
    with pytest.raises(ConfigError, match="Bernoulli scores the binarised image"):
        evaluate(place, compare=(str(place / "binary"),))


def test_a_missing_model_and_a_missing_dataset_are_named(place: Path):
    with pytest.raises(PipelineError, match="nowhere"):
        evaluate(place, "nowhere")
    with pytest.raises(PipelineError, match="nowhere"):
        evaluate(place, data=str(place / "nowhere"))
