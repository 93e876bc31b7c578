from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import jobs.evaluate
import jobs.explain
from pipeline.config import EvaluateConfig, ExplainConfig
from tests.support.digit_models import write_digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"))


def evaluate(place: Path, model: str = "vae", **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / model), "data": str(place / "data"), "importance_samples": 16}
    return dict(jobs.evaluate.main(EvaluateConfig.model_validate(config | knobs)).result)


def explain(place: Path, model: str = "vae", **knobs: object) -> dict[str, Any]:
    config = {"model": str(place / model), "data": str(place / "data"), "importance_samples": 16}
    return dict(jobs.explain.main(ExplainConfig.model_validate(config | knobs)).result)


def test_explain_writes_the_page_names_the_slip_and_gives_every_number(place: Path) -> None:
    measured = evaluate(place)
    averaged = measured["kl"] / measured["latent_dimensions"]
    result = explain(
        place, output=str(place / "page"), mine=(f"elbo={-measured['elbo']}", f"kl={averaged}")
    )
    assert "sign is flipped" in result["slips"]["elbo"][0]
    assert "averaged over dimensions" in result["slips"]["kl"][0]
    assert result["answers"]["elbo"]["elbo"] == measured["elbo"]
    page = (place / "page" / "explanation.md").read_text()
    web = Path(result["page"]).read_text()
    assert web.count("data:image/png;base64,") == page.count("![")
    assert web.count("data:image/svg+xml;base64,") == page.count("$$") // 2 >= 5
    assert f"{measured['elbo']:.3f}" in page
    assert "sign is flipped" in page
    for picture in ("latent_means.png", "interpolations.png"):
        assert picture in page
        assert (place / "page" / picture).exists()


def test_explain_tells_a_collapsed_model_so(place: Path) -> None:
    assert any("Posterior collapse" in line for line in explain(place, "collapsed")["warnings"])


def test_explain_wants_a_run_or_a_model_and_not_both(place: Path) -> None:
    with pytest.raises(ValidationError, match="and not both"):
        explain(place, run="x")


@pytest.mark.parametrize("wrong", ["elbow=1", "kl", "kl=many", "elbo=nan"])
def test_a_figure_of_no_known_quantity_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="is none of elbo, kl, log_likelihood"):
        ExplainConfig(run="r", mine=("kl=3", wrong))
