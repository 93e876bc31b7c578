"""What a reader of a picture must be able to do: read every word that stands in it."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from pipeline.figures.canvas import Canvas, to_png


def figure_of(
    monkeypatch: pytest.MonkeyPatch, draw: Callable[..., None], *arguments: Any, **options: Any
) -> Figure:
    """The figure that `draw` saves."""
    figures: list[Figure] = []
    original = Canvas.save

    def noted(self: Canvas, target: Any) -> None:
        figures.append(self.figure)
        original(self, target)

    monkeypatch.setattr(Canvas, "save", noted)
    assert to_png(draw, *arguments, **options)
    return figures[-1]


def words(figure: Figure) -> list[str]:
    """Every text that is shown."""
    return [text.get_text() for text in _shown(figure)]


def unreadable(figure: Figure) -> list[str]:
    """Texts that the picture's edge cuts, and pairs of texts that stand over each other."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in _shown(figure)]
    edge = figure.bbox
    found = [
        f"cut: {name}"
        for name, box in boxes
        if box.x0 < edge.x0 or box.x1 > edge.x1 or box.y0 < edge.y0 or box.y1 > edge.y1
    ]
    return found + [
        f"{first} | {second}"
        for (first, one), (second, other) in combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


def _shown(figure: Figure) -> list[Text]:
    figure.draw_without_rendering()
    hidden = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [text for text in texts if text.get_text() and text.get_visible() and text not in hidden]
