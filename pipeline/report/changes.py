"""What changed between two runs, or two stores: settings, data and numbers side by side."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from pipeline.evaluation.findings import mean_and_error
from pipeline.figures.curves import NAMES
from pipeline.json_value import Json, flat
from pipeline.report.content import Cell, Table
from pipeline.runs.history import read_elbos, read_validations
from pipeline.runs.run import Run

_NO_CHANGE = ("run", "storage", "tracking.", "dry_run", "begin_anew", "sweep")
"""Settings of a run that say where it is and how it was asked for, and not what it is."""


def named(quantity: str) -> str:
    """A measured quantity in words."""
    return NAMES.get(quantity, quantity.replace("_", " "))


def settings_table(this: Json, other: Json, names: tuple[str, str]) -> Table:
    """Each setting that differs, and its two values."""
    ours, theirs = flat(this), flat(other)
    rows = [
        (key, told(theirs.get(key)), told(ours.get(key)))
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and not key.startswith(_NO_CHANGE)
    ]
    return Table("Settings that differ", ("setting", names[1], names[0]), rows)


def told(value: object) -> str:
    """A setting as it is written in a configuration."""
    return "none" if value is None else str(value)


def numbers_table(
    this: Mapping[str, float | None], other: Mapping[str, float | None], names: tuple[str, str]
) -> Table:
    """Each number that both have, and this one minus the other."""
    rows: list[Sequence[Cell]] = []
    for quantity in this:
        ours, theirs = this[quantity], other.get(quantity)
        if ours is not None and theirs is not None:
            rows.append((named(quantity), theirs, ours, ours - theirs))
    return Table("Held-out numbers of both", ("quantity", names[1], names[0], "difference"), rows)


def paired_words(this: Run, other: Run) -> str | None:
    """The difference of the held-out ELBO image by image, with its error; None where unknown.

    The runs' hold-outs are the same.
    """
    ours, theirs = _elbos(this), _elbos(other)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return None
    both = (ours != 0) & (theirs != 0)  # 0: there is no such image
    mean, error = mean_and_error((ours - theirs)[both].numpy())
    return (
        f"Image by image on the first {int(both.sum()):,} held-out images the ELBO differs by "
        f"{mean:+,.3f} ± {error:,.3f} nats (mean and its standard error)."
    )


def _elbos(run: Run) -> Tensor | None:
    result = run.result()
    step = result.chosen_step if result is not None else None
    found = [each for each in read_validations(run) if each.step == step]
    return read_elbos(run, found[0]) if found else None
