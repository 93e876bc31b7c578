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
from pipeline.vae import save_bundle
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


def test_an_autoencoder_rebuilds_best_and_samples_worst_and_a_collapsed_vae_knows_no_class(place):
    others = tuple(str(place / name) for name in ("autoencoder", "collapsed"))
    table = evaluate(place, compare=others)["comparison"]["table"]
    vae, autoencoder, collapsed = (table[str(place / "vae")], *(table[name] for name in others))
    assert autoencoder["reconstruction_psnr"] > vae["reconstruction_psnr"]
    assert vae["reconstruction_psnr"] > collapsed["reconstruction_psnr"]
    # Codes that no prior has pulled lie far from it, so its draws decode to nothing seen.
    assert autoencoder["marginal_kl"] > 1.5 * vae["marginal_kl"]
    assert autoencoder["sample_psnr_to_nearest"] < vae["sample_psnr_to_nearest"]
    assert autoencoder["elbo"] < collapsed["elbo"] < vae["elbo"]
    assert autoencoder["posterior_gap"] > vae["posterior_gap"]
    assert (collapsed["active_units"], collapsed["neighbour_agreement"] < 0.5) == (0, True)
    assert vae["neighbour_agreement"] > 0.8


def test_a_full_covariance_posterior_is_measured_and_compared(place: Path):
    result = evaluate(place, compare=(str(place / "full"),))
    difference = result["comparison"]["differences"][str(place / "full")]["elbo"]
    assert difference["low"] < difference["mean"] < difference["high"]
    full = evaluate(place, "full")
    assert full["elbo"] == pytest.approx(full["log_likelihood"] - full["kl"], rel=1e-6)
    assert full["surgery"] is None


def test_two_latent_dimensions_are_integrated_and_drawn(place: Path):
    save_bundle(digits_vae(latents=2), place / "flat")
    result = evaluate(place, "flat", output=str(place / "flat_report"))
    exact = result["quadrature"]
    assert exact["error"] < 1e-4
    assert exact["log_evidence"] == pytest.approx(exact["elbo"] + exact["kl_q_posterior"], rel=1e-9)
    assert Image.open(place / "flat_report" / "posteriors.png").format == "PNG"
    assert evaluate(place)["quadrature"] is None
