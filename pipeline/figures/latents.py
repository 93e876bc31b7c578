"""Pictures of the latent space: means by label, the aggregated posterior, KL per dimension."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.quadrature import Window
from pipeline.figures.canvas import (
    AMBER,
    BLUE,
    INK,
    MUTED,
    RED,
    RULE,
    ArrayLike,
    Canvas,
    Target,
    label_colors,
    to_array,
    to_pixels,
)
from pipeline.vae.prior import kl_to_standard_normal, log_density

Floats = npt.NDArray[np.floating[Any]]

_SIDE = 5.0  # inch
_LEGEND = 0.4, 0.09
"""Of the legend: inches beside the names, and inches a character (of capitals)."""
_LONGEST_NAME = 30
"""Characters of a name in the legend: a longer one would push the map aside."""
_LONGEST_INSIDE = 3
"""Characters of a name that stands among the points; a longer one would hide some of them."""


def draw_latent_means(
    means: ArrayLike, target: Target, labels: Sequence[str] | None = None, note: str = ""
) -> None:
    """Posterior means `[N, D]` as points coloured by label, at most 20,000 of them.

    With more than two dimensions they are projected on their two principal axes, and the axes say
    so with the variance each explains.
    """
    points, axis_names, share = to_plane(to_array(means).reshape(len(means), -1).astype(np.float64))
    if len(points) > 20_000:
        kept = np.linspace(0, len(points) - 1, 20_000).astype(int)
        points, labels = points[kept], None if labels is None else [labels[i] for i in kept]
    headline = f"Latent means of {len(means):,} images"
    if labels is not None:
        headline += f", {len(set(labels))} labels"
    notes = [note or "The loss has never seen a label: what groups here is what the decoder reuses"]
    if share is not None:
        dimensions = to_array(means).reshape(len(means), -1).shape[1]
        notes.append(
            f"first two principal axes of {dimensions} dimensions: {share:.0%} of variance"
        )
    width = _SIDE
    if labels is not None:
        longest = max(len(_shortened(name)) for name in label_colors(labels)[0])
        width += max(1.5, _LEGEND[0] + _LEGEND[1] * longest)
    with Canvas(width, _SIDE, headline, "\n".join(notes)) as canvas:
        axes = canvas.axes(0.5, 0.05, _SIDE - 0.6, _SIDE - 0.5)
        axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
        size = float(np.clip(16_000 / len(points), 3, 26))
        if labels is None:
            axes.scatter(points[:, 0], points[:, 1], s=size, color=BLUE, alpha=0.6, linewidths=0)
        else:
            _scatter_by_label(axes, points, labels, size)
        _equal_limits(axes, points)
        canvas.save(target)


def draw_aggregated_posterior(
    means: ArrayLike,
    log_variances: ArrayLike,
    target: Target,
    dimensions: Sequence[int] | None = None,
    headline: str = "",
    note: str = "",
) -> None:
    """The density of q(z) = average of q(z|x) along single dimensions, against the prior's.

    `means`, `log_variances`: `[N, D]`. `dimensions`: which to show; the eight with the most KL
    when None. Where both curves agree, draws from the prior land where the decoder has been.
    """
    mu = to_array(means).reshape(len(means), -1).astype(np.float64)
    log_variance = to_array(log_variances).reshape(len(mu), -1).astype(np.float64)
    variance = np.exp(log_variance)
    nats = kl_to_standard_normal(torch.from_numpy(mu), torch.from_numpy(log_variance))
    kl = nats.mean(dim=0).numpy()
    chosen = np.argsort(-kl)[:8] if dimensions is None else np.asarray(dimensions)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    cell = 7.2 / columns
    with Canvas(
        7.2,
        rows * 1.7,
        headline or "Aggregated posterior q(z) against the prior",
        note or "blue: q(z), the average of q(z|x) over the images;  dashed: the prior N(0, 1)",
    ) as canvas:
        grid = np.linspace(-4, 4, 241)
        prior = log_density(torch.from_numpy(grid)).exp().numpy()
        for place, dimension in enumerate(chosen):
            row, column = divmod(place, columns)
            axes = canvas.axes(column * cell + 0.08, row * 1.7 + 0.3, cell - 0.16, 1.1)
            density = _mixture_density(grid, mu[:, dimension], variance[:, dimension])
            axes.fill_between(grid, density, color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(grid, density, color=BLUE)
            axes.plot(grid, prior, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
            axes.set(xlim=(-4, 4), ylim=(0, max(float(density.max()), 0.42) * 1.08), yticks=[])
            axes.set_xticks([-3, 0, 3], ["−3", "0", "3"])
            axes.grid(visible=False)
            axes.spines["left"].set_visible(False)
            axes.set_title(f"z{dimension}   KL {kl[dimension]:.2f}", fontsize=8)
        canvas.save(target)


def draw_kl_per_dimension(
    kl: ArrayLike, target: Target, activity: ArrayLike | None = None, note: str = ""
) -> None:
    """Mean KL of each latent dimension `[D]`, in nats, sorted, with its running total.

    `activity`: Var over images of the posterior mean `[D]`; a dimension with more than 0.01 is
    active (Burda et al. 2016) and blue.
    """
    values = to_array(kl).reshape(-1).astype(np.float64)
    order = np.argsort(-values, kind="stable")
    sorted_kl = values[order]
    headline = f"KL per dimension: {values.sum():.1f} nats over {len(values)}"
    active = np.ones(len(values), dtype=bool)
    if activity is not None:
        active = (to_array(activity).reshape(-1) > 0.01)[order]
        headline += f", {int(active.sum())} active"
    with Canvas(
        6.6, 2.9, headline, note or "blue: active (Var of the posterior mean > 0.01);  grey: not"
    ) as canvas:
        axes = canvas.axes(0.5, 0.1, 5.6, 2.3)
        position = np.arange(1, len(values) + 1)
        colors = np.where(active, BLUE, "#c9ced4")
        # A line's width is in points, 72 to the inch: the bars fill 82% of the 5.6 inches.
        thickness = max(5.6 * 72 / len(values) * 0.82, 0.6)
        axes.vlines(position, 0, sorted_kl, colors=list(colors), linewidth=thickness)
        axes.set(xlabel="dimensions, most informative first", ylabel="KL, nats")
        axes.set_xlim(0.4, len(values) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
        axes.set_ylim(0, None)
        axes.grid(visible=False, axis="x")
        total = axes.twinx()
        total.plot(position, np.cumsum(sorted_kl), color=AMBER, linewidth=1.4)
        total.set(ylabel="running total, nats")
        total.yaxis.label.set_color("#b97a00")
        total.set_ylim(0, None)
        total.grid(visible=False)
        total.spines["right"].set(visible=True, color=RULE)
        canvas.save(target)


def to_plane(points: Floats) -> tuple[Floats, tuple[str, str], float | None]:
    """Points in a plane, the axes' names, the share of variance (None: not projected)."""
    if points.shape[1] == 1:
        return np.concatenate([points, np.zeros_like(points)], axis=1), ("z0", ""), None
    if points.shape[1] == 2:
        return points, ("z0", "z1"), None
    centred = points - points.mean(axis=0)
    covariance = centred.T @ centred / len(points)
    eigenvalues, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, ::-1][:, :2]
    # A principal axis has no sign; the largest entry is made positive so that pictures repeat.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    shares = eigenvalues[::-1][:2] / max(float(eigenvalues.sum()), 1e-300)
    names = (
        f"principal axis 1 ({shares[0]:.0%} of variance)",
        f"principal axis 2 ({shares[1]:.0%} of variance)",
    )
    return centred @ axes, names, float(shares.sum())


def _scatter_by_label(axes: Axes, points: Floats, labels: Sequence[str], size: float) -> None:
    names = np.asarray([str(label) for label in labels])
    shown, colors, hidden = label_colors(list(names))
    rest = ~np.isin(names, shown)
    if hidden:
        axes.scatter(
            points[rest, 0], points[rest, 1], s=size, color="#c9ced4", linewidths=0,
            label=f"{hidden} more labels",
        )  # fmt: skip
    order = np.random.default_rng(0).permutation(np.flatnonzero(~rest))
    axes.scatter(
        points[order, 0],
        points[order, 1],
        s=size,
        c=[colors[names[i]] for i in order],
        alpha=0.75,
        linewidths=0,
    )
    for name in shown:
        axes.scatter([], [], s=28, color=colors[name], label=_shortened(name), linewidths=0)
        if max(map(len, shown)) <= _LONGEST_INSIDE:
            axes.annotate(
                name,
                tuple(np.median(points[names == name], axis=0)),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold",
                color=INK,
                bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8},
            )
    legend = axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), handletextpad=0.3, fontsize=8
    )
    for text in legend.get_texts():
        if text.get_text().endswith("more labels"):
            text.set_color(MUTED)


def _shortened(name: str) -> str:
    """Its beginning and its end, between which long names of one kind often agree."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2
    return f"{name[:half]}…{name[-half + 1 :]}"


def _equal_limits(axes: Axes, points: Floats) -> None:
    """Both axes span the same length, so that distances can be read off in any direction."""
    low, high = np.percentile(points, [0.1, 99.9], axis=0)
    middle, half = (low + high) / 2, float((high - low).max()) / 2 * 1.12 + 1e-9
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)


def _mixture_density(grid: Floats, means: Floats, variances: Floats) -> Floats:
    """The average over images of N(grid; mean, variance): `[len(grid)]`; 2,000 images at most."""
    kept = np.linspace(0, len(means) - 1, min(len(means), 2000)).astype(int)
    mu, variance = means[kept, None], variances[kept, None]
    terms = np.exp(-((grid - mu) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    return np.asarray(terms.mean(axis=0))


def draw_posteriors(
    originals: ArrayLike, windows: Sequence[Window], target: Target, note: str = ""
) -> None:
    """The true posterior (shaded) and q (its 1 and 2 sigma lines) of images `[N, C, H, W]`.

    One panel per image with the image in its corner; every panel has its own scale.
    """
    pictures = to_pixels(originals)
    columns = min(4, len(windows))
    cell = 1.78
    with Canvas(
        columns * cell,
        -(-len(windows) // columns) * cell,
        "True posterior p(z|x) and q(z|x)",
        note or "shaded: exact, by quadrature;  lines: q at 1 and 2 of its deviations",
    ) as canvas:
        for place, window in enumerate(windows):
            row, column = divmod(place, columns)
            axes = canvas.axes(column * cell + 0.02, row * cell + 0.02, cell - 0.1, cell - 0.1)
            across, up = window.axes.numpy()
            axes.pcolormesh(
                across, up, window.true.numpy(), cmap="Blues", shading="nearest", rasterized=True
            )
            peak = float(window.approximate.max())
            levels = [peak * math.exp(-2.0), peak * math.exp(-0.5)]
            axes.contour(across, up, window.approximate.numpy(), levels, colors=RED, linewidths=1)
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            inset = axes.inset_axes((*_emptiest_corner(window), 0.28, 0.28))
            inset.imshow(pictures[place])
            inset.set(xticks=[], yticks=[])
        canvas.save(target)


def _emptiest_corner(window: Window) -> tuple[float, float]:
    """Where a panel's image hides the least of both densities: the lower left of the inset.

    Fractions of the panel; the upper left unless something lies there.
    """
    share = window.true / window.true.max() + window.approximate / window.approximate.max()
    side = round(0.32 * len(share))
    corners = {
        (0.02, 0.7): share[-side:, :side],
        (0.7, 0.7): share[-side:, -side:],
        (0.02, 0.02): share[:side, :side],
        (0.7, 0.02): share[:side, -side:],
    }
    return min(corners, key=lambda place: round(float(corners[place].max()), 2))
