"""Pictures of numbers: training curves, the pulls on q, rate against distortion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from pipeline.figures.canvas import (
    AMBER,
    BLUE,
    INK,
    MUTED,
    RED,
    Canvas,
    Target,
    signed,
)

_WIDTH = 7.2
_TWO_LINES = 27
"""Points that two lines of a text take."""
NAMES = {
    "elbo": "ELBO",
    "log_likelihood": "E log p(x|z)",
    "log_likelihood_at_mean": "log p(x|z) at the mean",
    "kl": "KL(q || prior)",
    "posterior_gap": "posterior gap, at least",
    "iwae_gap": "IWAE − ELBO, same draws",
    "learning_rate": "learning rate",
    "beta": "weight of the KL",
    "entropy_q": "entropy of q",
    "cross_entropy_q_prior": "cross-entropy of q and prior",
    "iwae": "log p(x), at least (IWAE)",
    "reconstruction_psnr": "reconstruction, dB PSNR",
    "sample_psnr_to_nearest": "sample to nearest image, dB",
    "neighbour_agreement": "neighbours of one label",
    "marginal_kl": "KL(q(z) || prior)",
    "mixture_gain": "mixture beats prior by, nats",
}


@dataclass(frozen=True)
class Curve:
    """Values of one quantity at training steps, in training order; equal lengths."""

    steps: Sequence[float]
    values: Sequence[float]

    def at(self, step: float | None) -> float:
        """The value at a step, or the last one before it; None: the last of all."""
        known = [
            v for s, v in zip(self.steps, self.values, strict=True) if step is None or s <= step
        ]
        return known[-1] if known else self.values[0]


@dataclass(frozen=True)
class RatePoint:
    """One model on the rate-distortion plane, both in nats per image."""

    name: str
    rate: float
    distortion: float


def draw_training_curves(
    training: Mapping[str, Curve],
    validation: Mapping[str, Curve],
    target: Target,
    note: str = "",
    unit: str = "nats per image",
    chosen_step: float | None = None,
) -> None:
    """One panel per quantity: the training curve light, the hold-out dark; titles tell the value of
    the chosen step, which a line marks in each panel; None: that of the last one.

    Both mappings go from a quantity's name (`elbo`, `kl`, ...) to its curve; either may lack some.
    """
    names = list(dict.fromkeys([*validation, *training]))
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    cell, tall = _WIDTH / columns, 2.2
    headline = "Training curves"
    if "elbo" in validation:
        value = validation["elbo"].at(chosen_step)
        headline += f": held-out ELBO {signed(value, ',.2f')} {unit}"
        if chosen_step is not None:
            headline += f" at step {chosen_step:,.0f}"
    with Canvas(
        _WIDTH, rows * tall, headline, note or f"{unit};  light: training batches, dark: hold-out"
    ) as canvas:
        for place, name in enumerate(names):
            row, column = divmod(place, columns)
            axes = canvas.axes(column * cell + 0.55, row * tall + 0.28, cell - 0.75, tall - 0.72)
            curves = [curve for curve in (training.get(name), validation.get(name)) if curve]
            if name in training:
                axes.plot(
                    training[name].steps, training[name].values, color="#a9cdf0", linewidth=1.1
                )
            if name in validation:
                held = validation[name]
                marker = "o" if len(held.steps) <= 30 else None
                axes.plot(held.steps, held.values, color="#1f6fb8", marker=marker, markersize=3)
            if chosen_step is not None:
                axes.axvline(chosen_step, color=AMBER, linewidth=1.0, linestyle=(0, (4, 2)))
            shown = curves[-1].at(chosen_step)
            form = {"active_units": ",.0f", "learning_rate": ".2e", "beta": ".3g"}.get(name, ",.2f")
            axes.set_title(
                f"{NAMES.get(name, name.replace('_', ' '))}   {signed(shown, form)}",
                fontsize=8.5,
            )
            axes.set_ylim(*_robust_limits([value for curve in curves for value in curve.values]))
            if row == rows - 1 or place + columns >= len(names):
                axes.set_xlabel("step")
        canvas.save(target)


@dataclass(frozen=True)
class GapPoint:
    """KL(q || p(z|x)) >= `nats` after `step` steps, and how that was had."""

    step: float
    nats: float
    how: str


def draw_pull(
    kl: Curve, iwae_gap: Curve, target: Target, best: GapPoint | None = None, note: str = ""
) -> None:
    """q's distance to the prior and to the true posterior, over training, in nats per image.

    `kl` = KL(q(z|x) || p(z)), exact; `iwae_gap` = IWAE - ELBO by the same draws, of which is known
    only that KL(q(z|x) || p(z|x)) is not smaller; `best`: the better bound at the chosen step.
    """
    step = best.step if best else None
    at_least = max(iwae_gap.at(step), best.nats if best else 0.0)
    with Canvas(
        _WIDTH,
        3.0,
        f"Of q: KL to the prior {kl.at(step):.1f}, to the true posterior at least "
        f"{at_least:.1f} nats",
        note
        or "the KL term alone pulls q to the prior, the ELBO as a whole to the true posterior; "
        "dashed: a lower bound, the truth lies above",
    ) as canvas:
        axes = canvas.axes(0.55, 0.1, 5.2, 2.4)
        told = []
        for curve, color, name, style in (
            (kl, BLUE, "to the prior\nKL(q || p(z))", "-"),
            (iwae_gap, RED, "to the posterior,\nat least IWAE − ELBO", "--"),
        ):
            axes.plot(
                curve.steps, curve.values, color=color, marker="o", markersize=3, linestyle=style
            )
            told.append((curve.values[-1], name, color))
        if best is not None:
            axes.axvline(best.step, color=AMBER, linewidth=1.0, linestyle=(0, (4, 2)))
            axes.plot([best.step], [best.nats], color=RED, marker="^", markersize=6)
            told.append((best.nats, f"▲ to the posterior,\n≥ {best.nats:,.1f}", RED))
        axes.set(xlabel="step", ylabel="nats per image")
        axes.set_ylim(0, None)
        _tell_beside(axes, told, 2.4 * 72)
        canvas.save(target)


def _tell_beside(axes: Axes, told: Sequence[tuple[float, str, str]], tall: float) -> None:
    """Texts of two lines, each with its colour, right of axes that are `tall` points high: as near
    to their values' heights as the others leave room.
    """
    top = axes.get_ylim()[1]
    heights: list[float] = []
    for value, _, _ in sorted(told):
        here = tall * value / top if np.isfinite(value) else 0.0
        heights.append(max(here, heights[-1] + _TWO_LINES) if heights else here)
    most = tall
    for number in reversed(range(len(heights))):
        heights[number] = min(heights[number], most)
        most = heights[number] - _TWO_LINES
    for (_, name, color), height in zip(sorted(told), heights, strict=True):
        axes.annotate(
            name, (1.0, 0.0), xycoords="axes fraction", xytext=(8, height),
            textcoords="offset points", va="center", color=color, fontsize=8,
            annotation_clip=False,
        )  # fmt: skip


def draw_rate_distortion(points: Sequence[RatePoint], target: Target, note: str = "") -> None:
    """Models as points (rate = KL, distortion = -log-likelihood) with lines of equal ELBO.

    Alemi et al. 2018: ELBO = -(rate + distortion), so one ELBO is a whole diagonal of models.
    """
    rates = np.array([point.rate for point in points])
    distortions = np.array([point.distortion for point in points])
    best = points[int(np.argmin(rates + distortions))]
    with Canvas(
        5.6,
        4.2,
        f"Rate and distortion: best ELBO {signed(-(best.rate + best.distortion))} ({best.name})",
        note or "dashed: equal ELBO = −(rate + distortion); lower left is better",
    ) as canvas:
        axes = canvas.axes(0.65, 0.1, 4.6, 3.6)
        low = (max(0.0, rates.min() - _pad(rates)), distortions.min() - _pad(distortions))
        high = (rates.max() + _pad(rates), distortions.max() + _pad(distortions))
        span = np.array([low[0], high[0]])
        for total in np.linspace(low[0] + low[1], high[0] + high[1], 9)[1:-1]:
            axes.plot(span, total - span, color="#c9ced4", linewidth=0.8, linestyle=(0, (4, 3)))
            if low[1] < total - high[0] < high[1]:
                axes.annotate(
                    signed(-total, ",.0f"), (high[0], total - high[0]), xytext=(3, 0),
                    textcoords="offset points", fontsize=6.5, color=MUTED, va="center",
                    annotation_clip=False,
                )  # fmt: skip
        order = np.argsort(rates)
        axes.plot(rates[order], distortions[order], color=BLUE, linewidth=1.2)
        axes.scatter(rates, distortions, color=BLUE, s=26, zorder=3)
        for point in points:
            weight = "bold" if point is best else "normal"
            axes.annotate(
                point.name, (point.rate, point.distortion), xytext=(6, 5),
                textcoords="offset points", fontsize=8, fontweight=weight, color=INK,
            )  # fmt: skip
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        axes.set(xlabel="rate: KL(q(z|x) || p(z)), nats", ylabel="distortion: −E log p(x|z), nats")
        canvas.save(target)


def _pad(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
    return float(np.ptp(values)) * 0.15 + 1e-3 * float(np.abs(values).max()) + 0.5


def _robust_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits that the wild first steps of a training do not flatten: 3rd to 100th percentile."""
    finite = np.array([value for value in values if np.isfinite(value)] or [0.0])
    low, high = np.percentile(finite, [3, 97])
    if finite.min() > low - 3 * (high - low):
        low = finite.min()
    if finite.max() < high + 3 * (high - low):
        high = finite.max()
    pad = 0.06 * (high - low) + 1e-9 + 1e-3 * abs(high)
    return float(low - pad), float(high + pad)
