"""The pictures of a run's way: training and hold-out, and the same images through time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.figures.canvas import to_png
from pipeline.figures.curves import Curve, GapPoint, draw_pull, draw_training_curves
from pipeline.figures.images import draw_progress
from pipeline.runs.history import (
    COURSE,
    Moment,
    Validation,
    read_course,
    read_moments,
    read_validations,
)
from pipeline.runs.run import Run

_CURVES = ("elbo", "log_likelihood", "kl", "active_units")
_TRAINING_ALONE = ("learning_rate", "beta")
_MOMENTS = 8
"""Rows of the picture of the same images through time."""


def draw_way(run: Run, gap: tuple[float, str] | None = None) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each picture of a run's validations, which its folder keeps.

    `gap`: the best lower bound on the posterior gap of the run's model, and how it was had. Without
    one there is no pull.png: a weaker bound would be a second number for the same thing.
    """
    validations = read_validations(run)
    result = run.result()
    chosen = result.chosen_step if result is not None else None
    course = [read_course(run, validation) for validation in validations]
    moments = read_moments(run, validations, _MOMENTS)
    way = torch.cat(course) if course else torch.empty(0, len(COURSE))
    best = GapPoint(chosen, *gap) if gap is not None and chosen is not None else None
    yield from draw_history(validations, moments, way, chosen_step=chosen, best=best)


def draw_history(
    validations: Sequence[Validation],
    moments: Sequence[Moment],
    course: Tensor,
    *,
    chosen_step: int | None = None,
    best: GapPoint | None = None,
) -> Iterator[tuple[str, bytes]]:
    """(file name, PNG) of each; nothing for a run with fewer than two validations.

    course: training steps `[T, 6]`, with a column for each of `COURSE`.
    """
    if len(validations) < 2:
        return
    found = {name: _curve(validations, name) for name in (*_CURVES, "iwae_gap")}
    # A run that diverged has points without a value, and maybe no value at all.
    curves = {name: curve for name, curve in found.items() if curve.steps}
    if not curves:
        return
    note = (
        f"light: training batches;  dark: {validations[-1].images:,} held-out images at each of "
        f"{len(validations)} validations;  nats per image"
    )
    if chosen_step is not None:
        note += "\ndashed line: the step whose weights are kept; titles tell its values"
    training = _training(course)
    shown = {name: curve for name, curve in curves.items() if name != "iwae_gap"}
    picture = to_png(draw_training_curves, training, shown, note=note, chosen_step=chosen_step)
    yield "training_curves.png", picture
    if best is not None and "kl" in curves and "iwae_gap" in curves:
        yield "pull.png", to_png(draw_pull, curves["kl"], curves["iwae_gap"], best=best)
    if moments:
        rows = torch.stack([moment.reconstructions for moment in moments])
        steps = [moment.validation.step for moment in moments]
        yield (
            "progress.png",
            to_png(draw_progress, moments[-1].originals, rows, steps, chosen_step=chosen_step),
        )


def _curve(validations: Sequence[Validation], name: str) -> Curve:
    kept = [found for found in validations if name in found.terms]
    return Curve([found.step for found in kept], [found.terms[name] for found in kept])


def _training(course: Tensor) -> dict[str, Curve]:
    """What the training steps show: a weight that never moved needs no panel."""
    finite = course[course.isfinite().all(dim=1)]
    if len(finite) < 2:
        return {}
    columns = {name: finite[:, COURSE.index(name)].tolist() for name in COURSE}
    names = [name for name in (*_CURVES, *_TRAINING_ALONE) if name in columns]
    if len(set(columns["beta"])) == 1:
        names.remove("beta")
    return {name: Curve(columns["step"], columns[name]) for name in names}
