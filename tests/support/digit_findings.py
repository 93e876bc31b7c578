"""Findings of the small digit models, made once."""

import functools

from pipeline.evaluation.findings import FindingOptions, Findings, find
from pipeline.evaluation.numbers import Numbers
from pipeline.evaluation.rows import Measured, MeasureOptions, measure
from tests.support.digit_models import TRAINED_ON, digits_vae, held_out, images

COUNT = 300


@functools.cache
def evaluated(likelihood: str = "gaussian", beta: float = 1.0) -> tuple[Measured, Findings]:
    """Rows and findings of 299 held-out digits under one model."""
    vae = digits_vae(likelihood, beta=beta)
    measured = measure(vae, held_out(COUNT, 50), MeasureOptions(64, 0, 50, 1000))
    first = images()[0][TRAINED_ON : TRAINED_ON + 64]
    return measured, find(vae, measured, first, FindingOptions(0, 64, 8))


def numbers_of(likelihood: str = "gaussian", beta: float = 1.0) -> Numbers:
    """The numbers as `jobs.evaluate` reports them."""
    return evaluated(likelihood, beta)[1].numbers
