"""Paces as bars: in a terminal, and as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.figures.canvas import AMBER, BLUE, Canvas, Target

_WIDTH, _ROW = 7.2, 0.3
_BAR = 28
"""Characters of the longest bar: names and numbers beside it fit into 80."""
_NAME = 30


@dataclass(frozen=True)
class Bar:
    """A pace in images per second; `is_trial`: of a knob that was tried."""

    name: str
    pace: float
    is_trial: bool = False


def bar_lines(bars: Sequence[Bar]) -> list[str]:
    """A line for each, 80 characters at most unless a name is long."""
    most = max(bar.pace for bar in bars)
    return [
        f"{bar.name:<{_NAME}} {'█' * max(1, round(bar.pace / most * _BAR)):<{_BAR}} "
        f"{bar.pace:>8,.0f} images/s"
        for bar in bars
    ]


def draw_bars(bars: Sequence[Bar], target: Target, headline: str) -> None:
    """The same as a picture; knobs that were tried stand out."""
    height = _ROW * len(bars) + 0.4
    with Canvas(_WIDTH, height, headline, "images per second; amber: a knob tried") as canvas:
        axes = canvas.axes(2.6, 0.0, _WIDTH - 3.3, height - 0.4)
        places = range(len(bars))
        colors = [AMBER if bar.is_trial else BLUE for bar in bars]
        axes.barh(places, [bar.pace for bar in bars], color=colors, height=0.7)
        axes.set_yticks(list(places), [bar.name[:48] for bar in bars], fontsize=7)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        for place, bar in zip(places, bars, strict=True):
            axes.annotate(
                f"{bar.pace:,.0f}", (bar.pace, place), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=7.5,
            )  # fmt: skip
        canvas.save(target)
