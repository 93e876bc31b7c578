"""What a page says, before it is HTML: words, numbers and pictures, none of them trusted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.report.latent_map import LatentMap

Cell = str | int | float | None
"""Of a table: a number stays one until it is written, so that it is written in one way."""


@dataclass(frozen=True)
class Table:
    """Rows below a head; the first cell of each row names it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows, in words."""

    title: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    heading: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Page:
    """A title, what it comes to in a few lines, sections, and the map where there is a model."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    latent_map: LatentMap | None = field(default=None, repr=False)
