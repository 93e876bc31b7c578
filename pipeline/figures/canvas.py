"""One look for every picture: paper-white canvas, few inks, a headline that states the number."""

import io
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

Target = str | Path | BinaryIO
Pixels = npt.NDArray[np.floating[Any]]
ArrayLike = npt.NDArray[Any] | torch.Tensor

INK = "#1f2328"
MUTED = "#6e7781"
RULE = "#d0d7de"
# Petroff 2021, "Accessible color sequences for data visualization": ten colours that stay apart
# under all three kinds of colour blindness.
PALETTE = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
    "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
BLUE, AMBER, RED = PALETTE[0], PALETTE[1], PALETTE[2]

NO_LABEL = "(no label)"

_DPI = 160
_MARGIN = 0.16  # inch
_LINE = 0.2  # inch: one line of a note
_HEAD_LINE = 0.22  # inch: one line of a headline
_FAMILY = "DejaVu Sans"
_HEADLINE = FontProperties(family=_FAMILY, size=11, weight="bold")
_NOTE = FontProperties(family=_FAMILY, size=8)
_STYLE: dict[str, str | float | bool | list[str]] = {
    "font.family": _FAMILY,
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # A class may have dollars in its name.
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff2",
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


class Canvas:
    """A figure of `width` x `height` inches for its contents, with room for a headline above.

    The contents' rectangle is all the caller draws in; headline and note are laid above it, so
    that nothing can overlap whatever the picture's shape. Used as a context manager, because
    matplotlib reads its style whenever an artist is made.
    """

    def __init__(self, width: float, height: float, headline: str, note: str = "") -> None:
        heads = wrapped(headline, width, _HEADLINE)
        notes = [part for line in note.split("\n") for part in wrapped(line, width, _NOTE)]
        below = _MARGIN + 0.27 + _HEAD_LINE * (len(heads) - 1)
        self._head = below + _LINE * len(notes) + 0.05
        self.width, self.height = width, height
        self._full_width = width + 2 * _MARGIN
        self._full_height = height + self._head + _MARGIN
        self._style = matplotlib.rc_context(_STYLE)
        self.figure = Figure(
            figsize=(self._full_width, self._full_height), dpi=_DPI, facecolor="white"
        )
        FigureCanvasAgg(self.figure)
        x = _MARGIN / self._full_width
        for row, line in enumerate(heads):
            self._text(x, _MARGIN + row * _HEAD_LINE, line, color=INK, fontproperties=_HEADLINE)
        for row, line in enumerate(notes):
            self._text(x, below + row * _LINE, line, color=MUTED, fontproperties=_NOTE)

    def __enter__(self) -> "Canvas":
        self._style.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._style.__exit__(*error)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes at a rectangle of the contents, in inches from their top left corner."""
        return self.figure.add_axes(
            (
                (_MARGIN + left) / self._full_width,
                1 - (self._head + top + height) / self._full_height,
                width / self._full_width,
                height / self._full_height,
            )
        )

    def label(self, left: float, top: float, text: str, **style: Any) -> None:
        """Text at a point of the contents, in inches from their top left corner."""
        self._text((_MARGIN + left) / self._full_width, self._head + top, text, **style)

    def save(self, target: Target) -> None:
        """Writes a PNG, or what a path's suffix says (.pdf and .svg stay vector graphics)."""
        suffix = Path(target).suffix.lstrip(".") if isinstance(target, str | Path) else ""
        self.figure.savefig(target, format=suffix or "png")

    def _text(self, x: float, top: float, text: str, **style: Any) -> None:
        style = {"ha": "left", "va": "top", "fontsize": 8, **style}
        self.figure.text(x, 1 - top / self._full_height, text, **style)


def wrapped(line: str, width: float, font: FontProperties) -> list[str]:
    """A line as those that are `width` inches wide at most, cut between words where it can be."""
    longest = len(line)
    parts = [line] if line else []
    while longest > 1 and any(_inches(part, font) > width for part in parts):
        longest = min(longest - 1, int(longest * width / _inches(line[:longest], font)) or 1)
        parts = textwrap.wrap(line, longest, replace_whitespace=False)
    return parts


def _inches(line: str, font: FontProperties) -> float:
    return float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0]) / 72


def to_array(values: ArrayLike) -> npt.NDArray[Any]:
    """A numpy view of an array or a tensor on any device."""
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def to_pixels(images: ArrayLike) -> Pixels:
    """Images `[..., C, H, W]`, uint8 or float in [0, 1], as floats `[..., H, W, 3]` in [0, 1]."""
    array = to_array(images)
    pixels = array.astype(np.float64) / 255 if array.dtype == np.uint8 else array.astype(np.float64)
    pixels = np.moveaxis(np.clip(pixels, 0, 1), -3, -1)
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def to_png(draw: Any, *arguments: Any, **options: Any) -> bytes:
    """The PNG that `draw(*arguments, target, **options)` writes, for storage that takes bytes."""
    buffer = io.BytesIO()
    draw(*arguments, buffer, **options)
    return buffer.getvalue()


def label_names(labels: Sequence[object]) -> list[str] | None:
    """Labels as they are shown: None where no image has one, `NO_LABEL` for those without."""
    if all(label is None for label in labels):
        return None
    return [NO_LABEL if label is None else str(label) for label in labels]


def label_colors(labels: Sequence[str]) -> tuple[list[str], dict[str, str], int]:
    """Colours for the labels: (shown names in order, colour of each, how many names are not shown).

    At most ten names get a colour, the most frequent ones; the rest share grey.
    """
    names, counts = np.unique(np.asarray(labels), return_counts=True)
    if len(names) > len(PALETTE):
        kept = names[np.argsort(-counts, kind="stable")[: len(PALETTE)]]
        shown = sorted(map(str, kept), key=natural_key)
    else:
        shown = sorted(map(str, names), key=natural_key)
    return shown, dict(zip(shown, PALETTE, strict=False)), len(names) - len(shown)


def natural_key(name: str) -> list[tuple[int, float, str]]:
    """Sorts `10` after `9`, also inside words, and words after numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, float(part), "") if part.isdecimal() else (1, 0.0, part) for part in parts]


def signed(value: float, form: str = ",.1f") -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")
