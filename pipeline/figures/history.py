"""The pictures of a run's way: its curves on the hold-out, and the same images through time."""

from collections.abc import Iterator, Sequence

import torch

from pipeline.figures.canvas import to_png
from pipeline.figures.curves import Curve, draw_pull, draw_training_curves
from pipeline.figures.images import draw_progress
from pipeline.runs.history import Moment, Validation, read_moments, read_validations
from pipeline.runs.run import Run

_CURVES = ("elbo", "log_likelihood", "kl", "posterior_gap", "active_units")


def draw_history(
    validations: Sequence[Validation], moments: Sequence[Moment]
) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each; nothing for a run with fewer than two validations."""
    if len(validations) < 2:
        return
    found = {name: _curve(validations, name) for name in _CURVES}
    # A run that diverged has points without a value, and maybe no value at all.
    curves = {name: curve for name, curve in found.items() if curve.steps}
    if not curves:
        return
    images = f"{validations[-1].images:,} held-out images at each of {len(validations)} validations"
    yield "training_curves.png", to_png(draw_training_curves, {}, curves, note=images)
    if "kl" in curves and "posterior_gap" in curves:
        yield "pull.png", to_png(draw_pull, curves["kl"], curves["posterior_gap"])
    if moments:
        rows = torch.stack([moment.reconstructions for moment in moments])
        steps = [moment.validation.step for moment in moments]
        yield "progress.png", to_png(draw_progress, moments[-1].originals, rows, steps)


def _curve(validations: Sequence[Validation], name: str) -> Curve:
    kept = [found for found in validations if name in found.terms]
    return Curve([found.step for found in kept], [found.terms[name] for found in kept])


_MOMENTS = 8
"""Rows of the picture of the same images through time."""


def draw_way(run: Run) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each picture of a run's validations, which its folder keeps."""
    validations = read_validations(run)
    yield from draw_history(validations, read_moments(run, validations, _MOMENTS))
