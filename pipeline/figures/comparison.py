"""Models side by side: a panel for each quantity, with the digits that tell them apart."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.evaluation.comparison import Difference
from pipeline.figures.canvas import INK, MUTED, PALETTE, RULE, Canvas, Target, signed
from pipeline.figures.curves import NAMES

_CELL, _COLUMNS, _DOTS, _ROW = 3.7, 2, 1.55, 0.22
"""Inches of a panel, how many stand in a row, inches of its dots, and of one model in it."""
_BETTER = {"elbo": "higher", "iwae": "higher", "reconstruction_psnr": "higher"}
"""Of no other quantity is more, or less, better by itself."""
_PAIRED = {"reconstruction_psnr": "psnr_mean"}
"""As a difference is called where it isn't as the quantity."""
_FORMS = {"active_units": ",.0f", "neighbour_agreement": ".3f"}


def draw_comparison(
    table: Mapping[str, Mapping[str, float | None]],
    target: Target,
    note: str = "",
    differences: Mapping[str, Mapping[str, Difference]] | None = None,
) -> None:
    """Runs side by side: a dot of each for each quantity, `table[run][quantity]`; None: absent.

    `differences`: by run and quantity, to the first run over the same images; a line through a dot
    is the interval of it, and the number beside the value its mean.
    """
    runs = list(table)
    quantities = [
        name
        for name in dict.fromkeys(name for row in table.values() for name in row)
        if any(table[run].get(name) is not None for run in runs)
    ]
    apart = differences or {}
    top = _ROW * len(runs) + 0.1
    tall = 0.62 + _ROW * len(runs)
    rows = -(-len(quantities) // _COLUMNS)
    with Canvas(
        _CELL * min(_COLUMNS, len(quantities)),
        top + rows * tall,
        f"{len(runs)} models on the same hold-out",
        note or told_of(runs, apart),
    ) as canvas:
        for index, run in enumerate(runs):
            style = {"color": PALETTE[index % 10], "fontweight": "bold"}
            canvas.label(0, _ROW * index, f"● {run}", **style)
        for place, name in enumerate(quantities):
            row, column = divmod(place, _COLUMNS)
            left = column * _CELL + 0.1
            axes = canvas.axes(left, top + row * tall + 0.22, _DOTS, _ROW * len(runs))
            paired = _PAIRED.get(name, name)
            _panel(
                axes,
                [table[run].get(name) for run in runs],
                [apart.get(run, {}).get(paired) for run in runs],
                _FORMS.get(name, ",.2f"),
            )
            better = f", {_BETTER[name]} is better" if name in _BETTER else ""
            axes.set_title(NAMES.get(name, name.replace("_", " ")) + better, fontsize=8)
        canvas.save(target)


def told_of(runs: Sequence[str], differences: Mapping[str, Mapping[str, Difference]]) -> str:
    """What the dots say, and, of two models, which has the higher ELBO, where that is no chance."""
    if not differences:
        return "each quantity by its own scale"
    told = (
        f"beside a value: the mean over the images of its difference to {runs[0]};\n"
        "the line through a dot: its 95% interval"
    )
    elbo = differences[runs[1]].get("elbo") if len(runs) == 2 else None
    if elbo is None or not all(map(math.isfinite, (elbo.low, elbo.high))):
        return told
    if elbo.low <= 0 <= elbo.high:
        low, high = signed(elbo.low, "+,.2f"), signed(elbo.high, "+,.2f")
        first = f"By these images neither has the higher ELBO: 95% from {low} to {high} nats"
    else:
        better = runs[1] if elbo.low > 0 else runs[0]
        least, most = sorted(map(abs, (elbo.low, elbo.high)))
        first = f"{better} has the higher ELBO: by {abs(elbo.mean):,.2f} nats, 95% from "
        first += f"{least:,.2f} to {most:,.2f}"
    return f"{first}\n{told}"


def _panel(
    axes: Axes,
    values: Sequence[float | None],
    differences: Sequence[Difference | None],
    form: str,
) -> None:
    """A dot a model, from the top; its interval; and both in digits to the right."""
    ends = [value for value in values if value is not None and math.isfinite(value)]
    first = values[0]
    for index, (value, apart) in enumerate(zip(values, differences, strict=True)):
        color = PALETTE[index % 10]
        told = "—" if value is None else signed(value, form)
        if value is not None and math.isfinite(value):
            axes.plot([value], [index], "o", color=color, markersize=5)
        if apart is not None and first is not None and math.isfinite(apart.high):
            between = first + apart.low, first + apart.high
            axes.plot(between, (index, index), color=color, linewidth=1.6)
            ends += between
            told += f"   {signed(apart.mean, '+' + form)}"
        axes.annotate(
            told, (1.0, index), xycoords=("axes fraction", "data"), xytext=(8, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=INK,
            annotation_clip=False,
        )  # fmt: skip
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    pad = 0.12 * (high - low) or 0.5
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(nbins=2, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value, ",.6g")))
    axes.tick_params(axis="x", labelsize=6, length=2, pad=1.5, labelcolor=MUTED)
    axes.spines["left"].set_color(RULE)
