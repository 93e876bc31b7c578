"""Pictures made of images: reconstructions, samples, interpolations, traversals, progress."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.patches import Rectangle

from pipeline.figures.canvas import (
    INK,
    MUTED,
    RULE,
    ArrayLike,
    Canvas,
    Pixels,
    Target,
    signed,
    to_pixels,
)

_WIDTH = 7.2  # inch: a page's text width
_GAP = 0.035
_LABELS = 1.05
_HEADER = 0.2
_MAX_CELL = 1.1  # inch: larger ones show no more of a small image
_CAPTION = 0.14
_SHEET_COLUMNS, _LONGEST = 8, 18
"""Of a sheet: images in a row, so that a page's width shows each; letters of a key below one."""


def draw_reconstructions(
    originals: ArrayLike,
    reconstructions: Mapping[str, ArrayLike],
    target: Target,
    note: str = "",
    columns: int = 10,
) -> None:
    """Originals `[N, C, H, W]` over each named row of reconstructions, in bands of `columns`.

    The headline holds the PSNR of the first row, per image and then averaged, peak 1.
    """
    top = to_pixels(originals)
    rows = {"original": top} | {name: to_pixels(images) for name, images in reconstructions.items()}
    first = next(iter(reconstructions), None)
    headline = "Reconstructions"
    if first is not None:
        headline += f": {_mean_psnr(top, rows[first]):.1f} dB PSNR {first}"
    _draw_bands(rows, target, headline, note, columns)


def draw_samples(
    samples: ArrayLike, target: Target, headline: str = "", note: str = "", columns: int = 10
) -> None:
    """Images `[N, C, H, W]` decoded from draws of the prior (or of what the headline says)."""
    pixels = to_pixels(samples)
    columns = min(columns, len(pixels))
    rows = [pixels[start : start + columns] for start in range(0, len(pixels), columns)]
    _draw_grid(
        rows,
        target,
        headline or f"{len(pixels)} samples from the prior",
        note or "z ~ N(0, I), shown as the decoder's mean image",
    )


def draw_interpolations(
    paths: ArrayLike,
    target: Target,
    ends: tuple[ArrayLike, ArrayLike] | None = None,
    note: str = "",
) -> None:
    """Decoded walks `[P, S, C, H, W]` between pairs of latents, optionally framed by the originals.

    `ends`: the original images `[P, C, H, W]` of the start and of the goal.
    """
    walks = to_pixels(paths)
    steps = walks.shape[1]
    header = [f"{value:.2g}" for value in np.linspace(0, 1, steps)]
    rows: list[Pixels] = list(walks)
    if ends is not None:
        starts, goals = to_pixels(ends[0]), to_pixels(ends[1])
        rows = [
            np.concatenate([starts[i : i + 1], walks[i], goals[i : i + 1]])
            for i in range(len(walks))
        ]
        header = ["original", *header, "original"]
    _draw_grid(
        rows,
        target,
        f"Interpolations: {len(walks)} straight walks between posterior means",
        note or "each row moves from one image's latent mean to another's in equal steps",
        header=header,
    )


def draw_traversals(
    images: ArrayLike, values: Sequence[float], names: Sequence[str], target: Target, note: str = ""
) -> None:
    """Decoded images `[D, S, C, H, W]` while one direction at a time takes each of `values`.

    `names`: one line per direction, such as `axis 1  23%`.
    """
    pixels = to_pixels(images)
    _draw_grid(
        list(pixels),
        target,
        f"Traversals along {len(pixels)} directions",
        note or "one direction moves, in its own standard deviations; all others stay",
        header=[signed(value, "+.2g") if value else "0" for value in values],
        names=names,
    )


def draw_sheet(
    images: Sequence[ArrayLike],
    names: Sequence[str],
    target: Target,
    *,
    headline: str,
    walk: Sequence[float] = (),
) -> None:
    """Decoded images `[H, W, C]` uint8, each above its key; of walks a row each, below its `walk`.

    `names`: a key per image, or per row where there are walks.
    """
    shown = to_pixels(np.stack(_framed(images)).transpose(0, 3, 1, 2))
    columns = len(walk) or min(_SHEET_COLUMNS, len(shown))
    rows = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    if walk:
        header = [f"{value:.2g}" for value in walk]
        _draw_grid(rows, target, headline, header=header, names=[_tail(name) for name in names])
        return
    captions = [names[start : start + columns] for start in range(0, len(names), columns)]
    _draw_grid(rows, target, headline, captions=captions)


def _framed(images: Sequence[ArrayLike]) -> list[Pixels]:
    """Images of several shapes in the middle of one that holds each, white around them."""
    arrays = [np.asarray(image) for image in images]
    tall, wide = (max(array.shape[axis] for array in arrays) for axis in (0, 1))
    framed = []
    for array in arrays:
        rows, columns = tall - array.shape[0], wide - array.shape[1]
        sides = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
        framed.append(np.pad(array, sides, constant_values=255))
    return framed


def draw_progress(
    originals: ArrayLike,
    images: ArrayLike,
    steps: Sequence[int],
    target: Target,
    chosen_step: int | None = None,
) -> None:
    """Reconstructions `[T, N, C, H, W]` of the same originals `[N, C, H, W]` at each step."""
    kept = {chosen_step: ", kept"}
    rows = [to_pixels(originals), *to_pixels(images)]
    _draw_grid(
        rows,
        target,
        f"The same images through {max(steps):,} training steps",
        "decoded from the posterior mean",
        names=["original", *(f"step {step:,}{kept.get(step, '')}" for step in steps)],
    )


def _tail(name: str) -> str:
    """A key's end, which tells it from the others of its folder."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def _mean_psnr(originals: Pixels, images: Pixels) -> float:
    errors = np.mean((originals - images) ** 2, axis=(1, 2, 3))
    return float(np.mean(-10 * np.log10(np.maximum(errors, 1e-10))))


def _draw_bands(
    rows: Mapping[str, Pixels], target: Target, headline: str, note: str, columns: int
) -> None:
    count = len(next(iter(rows.values())))
    columns = min(columns, count)
    grid, names, gaps = [], [], []
    for start in range(0, count, columns):
        for index, (name, pixels) in enumerate(rows.items()):
            grid.append(pixels[start : start + columns])
            names.append(name)
            gaps.append(0.1 if index == 0 and start > 0 else 0.0)
    _draw_grid(grid, target, headline, note, names=names, gaps=gaps)


def _draw_grid(
    rows: Sequence[Pixels],
    target: Target,
    headline: str,
    note: str = "",
    header: Sequence[str] = (),
    names: Sequence[str] = (),
    gaps: Sequence[float] = (),
    captions: Sequence[Sequence[str]] = (),
) -> None:
    """Rows of images `[n, H, W, 3]` with optional column headers, row names and extra gaps.

    `captions`: what stands below each image.
    """
    columns = max(len(row) for row in rows)
    height, width = rows[0].shape[1:3]
    left = _LABELS if names else 0.0
    cell = min(_MAX_CELL, (_WIDTH - left) / columns - _GAP)
    cell_height = cell * height / width
    top = _HEADER if header else 0.0
    below = _GAP + (_CAPTION if captions else 0.0)
    tall = top + len(rows) * (cell_height + below) + sum(gaps)
    with Canvas(_WIDTH, tall, headline, note) as canvas:
        for column, text in enumerate(header):
            x = left + column * (cell + _GAP) + cell / 2
            canvas.label(x, 0.02, text, ha="center", color=MUTED, fontsize=7)
        axes = canvas.axes(0, 0, _WIDTH, tall)
        axes.set(xlim=(0, _WIDTH), ylim=(tall, 0))
        axes.set_axis_off()
        sharp = "nearest" if max(height, width) <= 96 else "antialiased"
        frames = []
        for number, row in enumerate(rows):
            top += gaps[number] if gaps else 0.0
            if names:
                middle = top + cell_height / 2
                canvas.label(0, middle, names[number], va="center", color=INK, fontsize=7.5)
            for column, image in enumerate(row):
                x = left + column * (cell + _GAP)
                place = (x, x + cell, top + cell_height, top)
                axes.imshow(image, extent=place, interpolation=sharp, aspect="auto", vmin=0, vmax=1)
                frames.append(Rectangle((x, top), cell, cell_height))
                if captions:
                    text, under = _tail(captions[number][column]), top + cell_height + 0.02
                    canvas.label(x + cell / 2, under, text, ha="center", color=MUTED, fontsize=6)
            top += cell_height + below
        axes.add_collection(
            PatchCollection(frames, facecolor="none", edgecolor=RULE, linewidth=0.6, zorder=3)
        )
        axes.set(xlim=(0, _WIDTH), ylim=(tall, 0))
        canvas.save(target)
