import math
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import torch
from PIL import Image
from torch.distributions import kl_divergence

from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.commands.evaluate import run_evaluation, short_names
from pipeline.config import EvaluateConfig, PackConfig
from pipeline.data import Dataset, load_images
from pipeline.packing.pack import pack
from pipeline.vae import draw_noise, save_bundle
from tests.support.digit_models import write_digits
from tests.support.ppca import data, optimum
from tests.support.warm import ray_workers_here


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def evaluate(place: Path, **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / "vae"), "data": str(place / "data"), "importance_samples": 16}
    return dict(run_evaluation(EvaluateConfig.model_validate(config | knobs)).to_json())


def test_one_two_and_three_workers_agree_to_a_millionth(place: Path) -> None:
    whole = evaluate(place)
    with ray_workers_here(), ray_cluster(3):
        shares = [evaluate(place, workers=2, batch_size=33), evaluate(place, workers=3)]
    for shared in shares:
        for name in ("elbo", "kl", "iwae", "posterior_gap", "log_likelihood_at_mean"):
            assert shared[name] == pytest.approx(whole[name], rel=1e-6), name
        assert shared["active_units"] == whole["active_units"]


def test_names_are_shown_without_the_folders_they_share() -> None:
    assert short_names(["/a/b/one", "/a/b/two"]) == {"/a/b/one": "one", "/a/b/two": "two"}
    assert short_names(["models:/vae@x", "models:/vae@y"])["models:/vae@x"] == "vae@x"


def test_the_linear_model_is_measured_as_its_closed_form_says(tmp_path: Path) -> None:
    linear = optimum("full")
    pixels = (data(60) * 256).floor().clamp(0, 255).to(torch.uint8)
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image[0].numpy()).save(tmp_path / "images" / f"{number:03}.png")
    source = (str(tmp_path / "images"),)
    pack(PackConfig(source=source, output=str(tmp_path / "data"), workers=1))
    vae = linear.vae.float()
    save_bundle(vae, tmp_path / "linear")
    config = EvaluateConfig(
        model=str(tmp_path / "linear"),
        data=str(tmp_path / "data"),
        importance_samples=256,
        bound_images=0,
    )
    found: Any = run_evaluation(config).to_json()
    dataset = Dataset.open(config.data)
    images = load_images(dataset, len(dataset), vae.preprocess).images.double()
    noise = draw_noise(vae, config.seed, 0, range(len(images))).pixels.double()
    scored, seen = (images + noise) / 256, (images + 0.5) / 256
    marginal = linear.marginal
    density = scipy.stats.multivariate_normal(marginal.mean.numpy(), marginal.covariance_matrix)
    evidence = density.logpdf(scored.flatten(1).numpy()).mean() - 9 * math.log(256)
    # q is exact for the image that the encoder sees; dequantisation moves the scored one a little.
    missed = kl_divergence(linear.true_posterior(seen), linear.true_posterior(scored)).mean()
    assert found["mean_log_weight"] + found["iwae_gap"] == pytest.approx(evidence, abs=1e-3)
    assert found["posterior_gap"] == pytest.approx(float(missed), abs=2e-4)
    assert found["bits_per_dim"] == pytest.approx(-found["elbo"] / 9 / math.log(2), rel=1e-12)
