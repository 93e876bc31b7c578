import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import ObjectiveConfig
from pipeline.evaluation.numbers import Numbers
from pipeline.explanation.objective import recorded
from pipeline.explanation.page import Known, explain, to_markdown, to_text, walk
from pipeline.vae import ObjectiveState, Optimised, optimised
from tests.support.digit_findings import numbers_of

QUESTIONS = yaml.safe_load((Path(__file__).parents[1] / "questions.yaml").read_text())
ELBO = Known(Optimised("beta", 1.0, 1))


def at(numbers: Numbers, path: str) -> float:
    found: Any = numbers
    for name in path.split("."):
        found = getattr(found, name)
    return float(found)


def test_at_least_twenty_questions_are_asked() -> None:
    assert len({asked["question"] for asked in QUESTIONS}) >= 20


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked["question"])
def test_the_answer_is_there_and_its_numbers_are_the_runs(asked: dict[str, Any]) -> None:
    numbers = numbers_of()
    parts = {part.name: part for part in explain(numbers, ELBO)}
    part = parts[asked["part"]]
    written = [float(number) for number in re.findall(r"-?\d+\.?\d*", part.text.replace(",", ""))]
    for name, path in asked["numbers"].items():
        value = at(numbers, path)
        assert part.numbers[name] == value
        assert any(abs(abs(value) - abs(found)) <= 0.006 for found in written), (name, value)
    assert part.title in to_text(numbers, list(parts.values()), [])


def test_a_picture_that_was_not_made_is_not_named() -> None:
    numbers = numbers_of()
    parts = explain(numbers, Known(has_way=True))
    assert "pull.png" in {part.picture for part in parts}
    assert "Picture:" not in to_text(numbers, parts, [])
    assert re.findall("Picture: .*", to_text(numbers, parts, ["samples.png"])) == [
        "Picture: samples.png"
    ]


def test_another_run_gives_other_numbers() -> None:
    one, other = explain(numbers_of(), ELBO), explain(numbers_of(beta=500.0), ELBO)
    changed = [a.name for a, b in zip(one, other, strict=True) if a.text != b.text]
    assert len(changed) == len(one)


def test_the_walk_goes_from_the_evidence_to_the_gap_and_its_terms_add_up() -> None:
    numbers = numbers_of()
    terms = {term.symbol: term for term in walk(numbers)}
    values = {symbol: term.value for symbol, term in terms.items()}
    assert values["ELBO"] == pytest.approx(values["E_q log p(x|z)"] - values["KL(q || p(z))"], 1e-6)
    assert values["KL(q || p(z))"] == pytest.approx(values["H(q, p(z))"] - values["H(q)"], 1e-5)
    gap = values["KL(q || p(z|x))"]
    assert values["log p(x)"] == pytest.approx(numbers.gap.elbo + gap)
    assert {s for s, t in terms.items() if t.relation == ">="} == {"log p(x)", "KL(q || p(z|x))"}


def test_there_is_one_gap_on_the_whole_page() -> None:
    numbers = numbers_of()
    page = to_text(numbers, explain(numbers, ELBO), [])
    told = re.findall(r"KL\(q \|\| p\(z\|x\)\) (?:is at least|>=) +(\d+\.\d+)", page)
    assert len(told) >= 4
    assert set(told) == {f"{numbers.posterior_gap:.3f}"}


OBJECTIVES = {
    "beta": (ObjectiveConfig(beta=4.0), "log-likelihood - 4 x KL"),
    "warm-up": (ObjectiveConfig(warmup="linear:9"), "leads to 1 and had not come"),
    "free_bits": (ObjectiveConfig(kind="free_bits", free_nats=0.5), "larger of the KL and 0.5"),
    "geco": (ObjectiveConfig(kind="geco", target_bits_per_dim=3.0), "ended at 0.25"),
    "iwae": (ObjectiveConfig(kind="iwae", samples=5), "importance-weighted bound of 5 draws"),
    "autoencoder": (ObjectiveConfig(kind="autoencoder"), "this is a plain autoencoder"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_was_optimised_is_told_as_the_bundle_says(name: str) -> None:
    config, words = OBJECTIVES[name]
    record = optimised(config, 3, ObjectiveState(beta=0.25)).to_json()
    told = recorded({"objective": record})
    assert told is not None
    part = next(part for part in explain(numbers_of(), Known(told)) if part.name == "weight")
    assert words in part.text
    assert f"{numbers_of().elbo:.3f}" in part.text
    if name == "beta":
        numbers = numbers_of()
        assert part.numbers["objective"] == numbers.log_likelihood - 4 * numbers.kl


def test_of_an_objective_that_nobody_recorded_nothing_is_said() -> None:
    assert "weight" not in {part.name for part in explain(numbers_of(), Known())}
    assert recorded({"objective": {"kind": "of another version"}}) is None
    assert recorded({"beta": 1.0}) is None


def test_without_labels_mixture_and_surgery_their_parts_are_left_out() -> None:
    numbers = replace(numbers_of(), neighbours=None, mixture=None, surgery=None)
    names = {part.name for part in explain(numbers, ELBO)}
    assert not names & {"classes", "coverage", "information"}


def test_bernoulli_is_told_that_bits_would_not_be_true() -> None:
    part = next(part for part in explain(numbers_of("bernoulli"), ELBO) if part.name == "bits")
    assert part.text.startswith("No: Bernoulli scores the binarised image")


def test_the_page_holds_its_formulas_and_the_pictures_that_there_are() -> None:
    numbers = numbers_of(beta=500.0)
    page = to_markdown(numbers, explain(numbers, ELBO), ["samples.png"])
    assert re.findall(r"!\[.*\]\((.*)\)", page) == ["samples.png"]
    assert r"$$ -KL_d = \frac{1}{2} \, (1 + logvar - \mu^2 - e^{logvar}) $$" in page
    assert page.index("- Posterior collapse") < page.index("## Where does the ELBO come from?")
