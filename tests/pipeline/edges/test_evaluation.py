from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EvaluateConfig
from pipeline.edges.cluster import ray_cluster
from pipeline.edges.evaluation import run_evaluation, short_names
from tests.pipeline.training.digits import write_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def evaluate(place: Path, **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / "vae"), "data": str(place / "data"), "importance_samples": 16}
    return run_evaluation(EvaluateConfig.model_validate(config | knobs))


def test_one_two_and_three_workers_agree_to_a_millionth(place: Path):
    whole = evaluate(place)
    with ray_cluster(3):
        shares = [evaluate(place, workers=2, batch_size=33), evaluate(place, workers=3)]
    for shared in shares:
        for name in ("elbo", "kl", "iwae", "posterior_gap", "log_likelihood_at_mean"):
            assert shared[name] == pytest.approx(whole[name], rel=1e-6), name
        assert shared["active_units"] == whole["active_units"]


def test_names_are_shown_without_the_folders_they_share():
    assert short_names(["/a/b/one", "/a/b/two"]) == {"/a/b/one": "one", "/a/b/two": "two"}
    assert short_names(["models:/vae@x", "models:/vae@y"])["models:/vae@x"] == "vae@x"
