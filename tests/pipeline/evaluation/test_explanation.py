import functools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.evaluation.explanation import explain, render, walk
from tests.support.digit_findings import numbers_of

QUESTIONS = yaml.safe_load((Path(__file__).parents[1] / "questions.yaml").read_text())


def at(numbers: dict[str, Any], path: str) -> float:
    return functools.reduce(lambda found, name: found[name], path.split("."), numbers)


def test_at_least_twenty_questions_are_asked():
    assert len({asked["question"] for asked in QUESTIONS}) >= 20


@pytest.mark.parametrize("asked", QUESTIONS, ids=lambda asked: asked["question"])
def test_the_answer_is_there_and_its_numbers_are_the_runs(asked: dict[str, Any]):
    numbers = numbers_of()
    parts = {part.name: part for part in explain(numbers)}
    part = parts[asked["part"]]
    written = [float(number) for number in re.findall(r"-?\d+\.?\d*", part.text.replace(",", ""))]
    for name, path in asked["numbers"].items():
        value = at(numbers, path)
        assert part.numbers[name] == value
        assert any(abs(abs(value) - abs(found)) <= 0.006 for found in written), (name, value)
    assert part.title in render(numbers, list(parts.values()), [])


def test_another_run_gives_other_numbers():
    one, other = explain(numbers_of()), explain(numbers_of(beta=500.0))
    changed = [a.name for a, b in zip(one, other, strict=True) if a.text != b.text]
    assert len(changed) == len(one)


def test_the_walk_goes_from_the_evidence_to_the_gap_and_its_terms_add_up():
    values = {term.symbol: term.value for term in walk(numbers_of())}
    assert values["ELBO"] == pytest.approx(values["E_q log p(x|z)"] - values["KL(q || p(z))"], 1e-6)
    assert values["KL(q || p(z))"] == pytest.approx(values["H(q, p(z))"] - values["H(q)"], 1e-5)
    assert values["log p(x)"] >= values["ELBO"]


def test_the_objective_keeps_its_beta_and_the_elbo_its_own_weight():
    numbers = numbers_of()
    part = next(part for part in explain(numbers, beta=4.0) if part.name == "weight")
    assert part.numbers["objective"] == numbers["log_likelihood"] - 4 * numbers["kl"]
    assert f"{numbers['elbo']:.3f}" in part.text


def test_without_labels_and_split_their_parts_are_left_out():
    numbers = numbers_of() | {"neighbours": None, "gap_split": None, "surgery": None}
    names = {part.name for part in explain(numbers)}
    assert not names & {"classes", "encoder_or_decoder", "information"}


def test_bernoulli_is_told_that_bits_would_not_be_true():
    part = next(part for part in explain(numbers_of("bernoulli")) if part.name == "bits")
    assert part.text.startswith("No: Bernoulli scores the binarised image")


def test_warnings_come_before_the_answers():
    numbers = numbers_of()
    page = render(numbers, explain(numbers), ["Posterior collapse: ..."])
    assert page.index("Posterior collapse") < page.index("## Where does the ELBO come from?")
