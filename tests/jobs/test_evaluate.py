import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import jobs.evaluate
import pipeline.commands.evaluate
from pipeline.config import EvaluateConfig, PackConfig
from pipeline.data import Dataset
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluation.distances import SetDistances
from pipeline.packing.pack import pack
from pipeline.vae import save_bundle
from tests.support import warm
from tests.support.digit_models import digits_vae, write_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def evaluate(place: Path, model: str = "vae", **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / model), "data": str(place / "data"), "importance_samples": 16}
    return dict(jobs.evaluate.main(EvaluateConfig.model_validate(config | knobs)).result)


def test_the_command_ends_with_one_json_line_that_holds_the_contracts_keys(place: Path) -> None:
    command = ("jobs.evaluate", "--model", str(place / "vae"), "--data", str(place / "data"))
    ended = warm.run(place, *command)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    contract = "elbo log_likelihood kl bits_per_dim iwae posterior_gap active_units figures"
    assert set(contract.split()) <= set(result)
    assert result["images"] == 120
    assert result["model_digest"] == digits_vae().digest
    assert "posterior gap" in ended.stdout
    assert "Traceback" not in ended.stderr


def test_pictures_and_report_lie_where_the_result_says(place: Path) -> None:
    result = evaluate(place, output=str(place / "report"), compare=(str(place / "collapsed"),))
    assert len(result["figures"]) == 9
    for url in result["figures"]:
        assert Image.open(url).format == "PNG"
    report = json.loads((place / "report" / "evaluation.json").read_text())
    assert report["elbo"] == result["elbo"]
    assert sum(report["kl_per_dimension"]) == pytest.approx(result["kl"], rel=1e-6)
    difference = result["comparison"]["differences"][str(place / "collapsed")]["elbo"]
    assert difference["high"] < 0


def test_a_users_features_see_every_image_and_are_looked_for_before_any_is_read(
    place: Path, tmp_path: Path
) -> None:
    features = "tests.pipeline.evaluation.test_distances:Channels"
    found = evaluate(place, features=features, bound_images=0)["distances"]
    assert (found["features"], found["dimensions"]) == (features, 2)
    assert (found["images"], found["samples"]) == (120, 120)
    assert found["generation"] >= 0 <= found["reconstruction"]
    data = shutil.copytree(place / "data", tmp_path / "data")
    for shard in data.rglob("*.tar"):
        shard.unlink()
    with pytest.raises(ConfigError, match="nowhere:Net"):
        evaluate(place, data=str(data), features="nowhere:Net")
    with pytest.raises(ConfigError, match=r"lpips"):
        evaluate(place, data=str(data), lpips=str(tmp_path / "alexnet.pth"))


def test_models_of_different_measures_are_refused_before_an_image_is_read(
    place: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(place / "data", tmp_path / "data")
    for shard in data.rglob("*.tar"):
        shard.unlink()
    words = "one scores the binarised image, the other the 256 levels"
    with pytest.raises(ConfigError, match=words):
        evaluate(place, data=str(data), compare=(str(place / "binary"),))


def test_a_model_beside_itself_is_said_to_be_the_same_weights(place: Path) -> None:
    name = str(place / "vae")
    asked = {"model": name, "data": str(place / "data"), "compare": (name, str(place / "full"))}
    lines = jobs.evaluate.main(EvaluateConfig.model_validate(asked)).summary
    (same,) = [line for line in lines if "the same weights" in line]
    assert f"{name} (the same weights): ELBO +0.000 [+0.000, +0.000]" in same
    assert any(line.startswith(f"  {place / 'full'}: ELBO ") for line in lines)


def test_the_first_good_images_are_taken_where_the_first_of_all_cannot_be_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(place / "data", tmp_path / "data")
    index = Dataset.open(str(data)).read_index(0)
    (shard,) = data.rglob("*.tar")
    tar = bytearray(shard.read_bytes())
    for offset, size in zip(index.offsets[:10], index.sizes[:10], strict=True):
        tar[offset : offset + size] = bytes(size)
    shard.write_bytes(tar)
    monkeypatch.setattr(pipeline.commands.evaluate, "_FIRST", 8)
    result = evaluate(place, data=str(data), output=str(tmp_path / "report"))
    assert result["images"] == 110
    assert result["generation"]["compared_with"] == 8
    assert result["gap"]["images"] == 8


def test_one_image_is_measured_and_its_errors_are_unknown(place: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(next((place / "images").rglob("*.png")), images / "one.png")
    pack(PackConfig(source=(str(images),), output=str(tmp_path / "data"), workers=1))
    asked: dict[str, Any] = {"model": str(place / "vae"), "data": str(tmp_path / "data")}
    asked |= {"compare": (str(place / "full"),)}
    outcome = jobs.evaluate.main(EvaluateConfig.model_validate(asked))
    assert json.loads(json.dumps(outcome.result, allow_nan=False))["elbo_error"] is None
    assert outcome.summary[1].endswith("+- unknown")


def test_a_missing_model_and_a_missing_dataset_are_named(place: Path) -> None:
    with pytest.raises(PipelineError, match="nowhere"):
        evaluate(place, "nowhere")
    with pytest.raises(PipelineError, match="nowhere"):
        evaluate(place, data=str(place / "nowhere"))


def test_an_autoencoder_rebuilds_best_and_samples_worst_and_a_collapsed_vae_knows_no_class(
    place: Path,
) -> None:
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


def test_a_full_covariance_posterior_is_measured_and_compared(place: Path) -> None:
    result = evaluate(place, compare=(str(place / "full"),))
    difference = result["comparison"]["differences"][str(place / "full")]["elbo"]
    assert difference["low"] < difference["mean"] < difference["high"]
    full = evaluate(place, "full")
    assert full["elbo"] == pytest.approx(full["log_likelihood"] - full["kl"], rel=1e-6)
    assert full["surgery"] is None


def test_two_latent_dimensions_are_integrated_and_drawn(place: Path) -> None:
    save_bundle(digits_vae(latents=2), place / "flat")
    result = evaluate(place, "flat", output=str(place / "flat_report"))
    exact = result["quadrature"]
    assert exact["error"] < 1e-4
    assert exact["log_evidence"] == pytest.approx(exact["elbo"] + exact["kl_q_posterior"], rel=1e-9)
    assert Image.open(place / "flat_report" / "posteriors.png").format == "PNG"
    assert evaluate(place)["quadrature"] is None


def test_what_surprises_of_a_kernel_distance_is_explained_and_without_error_it_is_not_told() -> (
    None
):
    found = SetDistances("pixels", 2, 9, 9, 0.1, 0.2, -0.01, 0.02, 0.3, 0.1)
    told = jobs.evaluate._distances(found)
    assert told[0].endswith("(far too high: too few images for its 2 features)")
    assert told[1].endswith("+- 0.100 (below 0 by chance alone, for its estimate is unbiased)")
    plain = replace(found, reconstruction_kernel=0.01, images=10, samples=10)
    assert jobs.evaluate._distances(plain)[1].endswith("+- 0.100")
    assert jobs.evaluate._distances(plain)[0].endswith("samples")
    assert len(jobs.evaluate._distances(replace(found, generation_kernel_error=math.inf))) == 1
