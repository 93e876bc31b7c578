"""A page as one HTML file. What it is made of comes from strangers: names, captions, URLs.

Nothing in it can run or be fetched: each word is escaped, and the page's own policy allows our one
script and our one style by their hashes, pictures that stand in the page, and nothing else.
"""

import base64
import hashlib
import io
from collections.abc import Iterator
from importlib.resources import files

from PIL import Image

from pipeline.errors import PipelineError
from pipeline.report.content import Cell, Page, Picture, Section, Table
from pipeline.report.latent_map import LatentMap
from pipeline.report.map_markup import map_html, text

MOST_BYTES = 8 * 10**6
"""A page that is mailed and opened on a phone."""
_LARGE_PNG = 300_000
"""From here on a picture is kept as WebP: its text stays sharp, and it is a quarter as large."""


def to_html(page: Page) -> bytes:
    """The page; raises `PipelineError` for one of more than 8 MB."""
    style, script = _own("page.css"), _own("map.js")
    body = "\n".join(_body(page))
    runs = f"<script>{script}</script>" if page.latent_map else ""
    made = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(page.title)}</title><style>{style}</style></head>\n"
        f"<body>\n{body}\n{runs}</body></html>\n"
    ).encode()
    if len(made) > MOST_BYTES:
        raise PipelineError(
            f"the page has {len(made) / 1e6:.1f} MB, over {MOST_BYTES / 1e6:.0f}: its pictures do "
            "not fit. Leave out `--compare`."
        )
    return made


def _own(name: str) -> str:
    return files("pipeline.report").joinpath(name).read_text()


def _policy(style: str, script: str) -> str:
    """What the page may do; only a text with one of these hashes runs, or is a style."""
    allowed = [
        f"{kind} 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
        for kind, own in (("script-src", script), ("style-src", style))
    ]
    return "; ".join(
        ["default-src 'none'", "img-src data:", *allowed, "base-uri 'none'", "form-action 'none'"]
    )


def _body(page: Page) -> Iterator[str]:
    headings = [section.heading for section in page.sections]
    if page.latent_map:
        headings.insert(1, "Latent map")
    links = "".join(
        f'<li><a href="#part-{number}">{text(heading)}</a></li>'
        for number, heading in enumerate(headings)
    )
    yield f"<header><h1>{text(page.title)}</h1>"
    yield "".join(f"<p>{text(line)}</p>" for line in page.lead) + "</header>"
    yield f'<nav aria-label="Parts of this page"><ul>{links}</ul></nav>\n<main>'
    number = 0
    for place, section in enumerate(page.sections):
        if place == 1 and page.latent_map:
            yield _mapped(page.latent_map, number)
            number += 1
        yield from _section(section, number)
        number += 1
    yield "</main>"


def _mapped(drawn: LatentMap, number: int) -> str:
    return (
        f'<section id="part-{number}" aria-labelledby="heading-{number}">'
        f'<h2 id="heading-{number}">Latent map</h2>{map_html(drawn)}</section>'
    )


def _section(section: Section, number: int) -> Iterator[str]:
    yield f'<section id="part-{number}" aria-labelledby="heading-{number}">'
    yield f'<h2 id="heading-{number}">{text(section.heading)}</h2>'
    yield from (f"<p>{text(line)}</p>" for line in section.words)
    yield from map(_table, section.tables)
    yield from map(_figure, section.pictures)
    yield "</section>"


def _table(table: Table) -> str:
    """Wider than a phone it scrolls by itself, by keyboard too."""
    numeric = [
        any(isinstance(row[column], int | float) for row in table.rows)
        for column in range(len(table.head))
    ]
    head = "".join(
        f'<th scope="col"{_class(is_number)}>{text(name)}</th>'
        for name, is_number in zip(table.head, numeric, strict=True)
    )
    rows = "".join(
        f'<tr><th scope="row">{text(_said(row[0]))}</th>{"".join(map(_cell, row[1:]))}</tr>'
        for row in table.rows
    )
    caption = text(table.caption)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
        "</table></div>"
    )


def _class(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _cell(value: Cell) -> str:
    """A number also stands there as it is, with all its digits."""
    if isinstance(value, int | float):
        return f'<td class="number" data-value="{value!r}">{text(_said(value))}</td>'
    return f"<td>{text(_said(value))}</td>"


def _said(value: Cell) -> str:
    match value:
        case None:
            return "–"
        case int():
            return f"{value:,}"
        case float():
            plain = value == 0 or 1e-3 <= abs(value) < 1e9
            return f"{value:,.{0 if value.is_integer() else 3}f}" if plain else f"{value:.3g}"
        case str():
            return value


def _figure(picture: Picture) -> str:
    """Its numbers stand in the tables: a screen reader is told what it shows."""
    data, media = picture.png, "image/png"
    width, height = Image.open(io.BytesIO(data)).size
    if len(data) > _LARGE_PNG:
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(file, "WEBP", quality=82)
        data, media = file.getvalue(), "image/webp"
    title = text(picture.title)
    source = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return (
        f'<figure><img alt="{title}" width="{width}" height="{height}" src="{source}">'
        f"<figcaption>{title}</figcaption></figure>"
    )
