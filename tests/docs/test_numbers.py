"""docs/numbers.md tells of every figure that the jobs print, and of none that they do not."""

import math
import re
from dataclasses import fields
from typing import Any

from pipeline.evaluation.findings import FindingOptions, find
from pipeline.evaluation.rows import MeasureOptions, measure
from pipeline.packing.counts import Counts
from pipeline.runs.goodput import STATES
from pipeline.runs.result import TrainingResult
from pipeline.training.step import StepReport
from pipeline.vae import ElboTerms
from tests.docs.blocks import ROOT
from tests.support.digit_models import TRAINED_ON, digits_vae, held_out, images

PAGE = (ROOT / "docs/numbers.md").read_text()
TOLD = set(re.findall(r"`([\w.]+)`", PAGE))
NO_FIGURES = {
    "run", "run_id", "reason", "steps", "model", "model_version", "bundle", "digest",
}  # fmt: skip
"""Of a training's result: names, not measurements."""


def test_every_figure_of_an_evaluation_is_told() -> None:
    vae = digits_vae(latents=2, steps=1)
    measured = measure(vae, held_out(40, 20), MeasureOptions(4, 0, 20, 100))
    first = images()[0][TRAINED_ON : TRAINED_ON + 8]
    found: Any = find(vae, measured, first, FindingOptions(0, 4, 2)).numbers.to_json()
    assert {name.removesuffix("_error") for name in found} - TOLD == set()
    assert found["quadrature"] is not None  # z has two dimensions here
    assert math.isfinite(found["quadrature"]["error"])


def test_every_figure_of_a_training_and_a_pack_is_told() -> None:
    assert {field.name for field in fields(TrainingResult)} - NO_FIGURES - TOLD == set()
    assert {*STATES, *ElboTerms.COMPONENTS, "objective", "beta"} - TOLD == set()
    assert {"objective", "beta"} < {field.name for field in fields(StepReport)}
    assert {"seen", "packed", "duplicates", "rejected", "ignored"} - TOLD == set()
    assert {"seen", "packed", "duplicates", "ignored"} < {field.name for field in fields(Counts)}


def test_the_pages_kl_is_that_of_torch() -> None:
    import torch
    from torch.distributions import Normal, kl_divergence

    mean, logvar = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    told = re.search(r"`(-0\.5 \* sum\(.*?\))`", PAGE)
    assert told is not None
    names = {"mean": mean, "logvar": logvar, "exp": torch.exp, "sum": lambda x: x.sum(1)}
    expected = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(eval(told[1].replace("^", "**"), names), expected)
