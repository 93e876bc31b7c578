"""The latent map as HTML: it can be seen without the script that moves it, and used by keys."""

import base64
import html
import json
from collections.abc import Iterator, Mapping, Sequence

from pipeline.figures.canvas import BLUE, NO_LABEL, label_colors
from pipeline.masking import safe
from pipeline.report.latent_map import Atlas, LatentMap

_REST = "#94a4a2"
"""Of the labels for which no colour is left."""
_MARGIN, _SPAN = 50, 900
"""The square has 1000 units, and a mark is 18 wide."""


def text(words: str) -> str:
    """Escaped for HTML, also inside an attribute; a URL in it shows no secret."""
    return html.escape(safe(words))


def map_html(drawn: LatentMap) -> str:
    """Map, the image that is looked at, the marked images and the way between two of them."""
    return "\n".join(_parts(drawn))


def _parts(drawn: LatentMap) -> Iterator[str]:
    count = len(drawn.points)
    shown, unexplained = text(drawn.shown), ""
    if drawn.share is not None:
        unexplained = f" The plane holds {drawn.share:.0%} of the variance of their latents."
    yield (
        f"<p>Each of {count:,} {shown} is a point where its latent lies: "
        f"{text(_axes(drawn.axes))}.{unexplained} Point at one to see it. Two marked images, "
        "chosen on the map or below it, show what the model decodes between them.</p>"
    )
    yield "<noscript><p>Without scripts the map shows points and marks alone.</p></noscript>"
    yield '<div id="latent-map"><div class="plane">' + _svg(drawn)
    yield (
        '<div class="side"><canvas id="seen" role="img" aria-label="Image"></canvas>'
        '<p id="seen-name"></p><label for="walk">Look at each image</label><br>'
        f'<input id="walk" type="range" min="0" max="{count - 1}" value="0">'
        + _legend(drawn.labels)
        + "</div></div>"
    )
    yield f'<img id="images" alt="" hidden src="{_source(drawn.images)}">'
    if drawn.ways is not None:
        yield f'<img id="ways" alt="" hidden src="{_source(drawn.ways)}">'
        yield _between(drawn)
    yield f'</div><script type="application/json" id="map-data">{_data(drawn)}</script>'


def _axes(names: tuple[str, str]) -> str:
    return f"{names[0]} to the right" + (f", {names[1]} upwards" if names[1] else "")


def _svg(drawn: LatentMap) -> str:
    colors = _colors(drawn.labels)
    places = [(_MARGIN + _SPAN * across, _MARGIN + _SPAN * (1 - up)) for across, up in drawn.points]
    labels = drawn.labels or [""] * len(places)
    points = "".join(
        f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="8" fill="{colors.get(label, _REST)}"/>'
        for (x, y), label in zip(places, labels, strict=True)
    )
    # A mark hides its point: the ring has the label's colour.
    rings = [f' stroke="{colors.get(each, _REST)}"' if drawn.labels else "" for each in labels]
    marks = "".join(
        f'<g class="mark"><circle cx="{places[point][0]:.1f}" cy="{places[point][1]:.1f}" r="20"'
        f"{rings[point]}/>"
        f'<text x="{places[point][0]:.1f}" y="{places[point][1]:.1f}">{letter(number)}</text></g>'
        for number, point in enumerate(drawn.marked)
    )
    said = f"Map of {len(places):,} {text(drawn.shown)}, {len(drawn.marked)} of them marked"
    hidden = 'visibility="hidden"'
    return (
        f'<svg id="plane" viewBox="0 0 1000 1000" role="img" aria-label="{said}">{points}'
        f'<line class="way" {hidden}/>{marks}<circle class="looked" r="13" {hidden}/>'
        f'<circle class="at" r="10" {hidden}/></svg>'
    )


def letter(mark: int) -> str:
    """The marked images are called A, B, C ..."""
    return chr(ord("A") + mark)


def _colors(labels: Sequence[str] | None) -> Mapping[str, str]:
    if labels is None:
        return {"": BLUE}
    found = label_colors(labels)[1]
    return {name: color for name, color in found.items() if name != NO_LABEL}


def _legend(labels: Sequence[str] | None) -> str:
    if labels is None:
        return ""
    shown, colors, hidden = label_colors(labels)
    entries = [(name, _REST if name == NO_LABEL else colors[name]) for name in shown]
    entries += [(f"{hidden} more labels", _REST)] if hidden else []
    items = "".join(
        '<li><svg viewBox="0 0 10 10" aria-hidden="true"><circle cx="5" cy="5" r="5" '
        f'fill="{color}"/></svg> {text(name)}</li>'
        for name, color in entries
    )
    return f'<ul class="legend" aria-label="Labels">{items}</ul>'


def _between(drawn: LatentMap) -> str:
    names = [_name(drawn, point) for point in drawn.marked]
    buttons = "".join(
        f'<li><button type="button" aria-pressed="false" aria-label="{letter(number)}: '
        f'{text(name)}"><canvas aria-hidden="true"></canvas>{letter(number)}</button></li>'
        for number, name in enumerate(names)
    )
    return (
        f'<h3>Between two images</h3><p id="chosen" role="status"></p><ul class="marks">{buttons}'
        '</ul><div id="found" hidden><canvas id="between" role="img" aria-label="Decoded image">'
        '</canvas><br><label for="share">From the one to the other</label> '
        f'<span id="share-said"></span><br><input id="share" type="range" min="0" '
        f'max="{drawn.steps - 1}"><canvas id="strip" role="img" aria-label="All {drawn.steps} '
        'images of the way, in a row"></canvas></div>'
    )


def _name(drawn: LatentMap, point: int) -> str:
    label = "" if drawn.labels is None else f", {drawn.labels[point]}"
    return f"{drawn.keys[point]}{label}"


def _source(atlas: Atlas) -> str:
    return f"data:{atlas.media};base64,{base64.b64encode(atlas.data).decode()}"


def _data(drawn: LatentMap) -> str:
    """What the script reads. No `<` can end the element that it stands in."""
    told = {
        "keys": [safe(key) for key in drawn.keys],
        "labels": None if drawn.labels is None else [safe(label) for label in drawn.labels],
        "marked": list(drawn.marked),
        "steps": drawn.steps,
        "images": {"side": drawn.images.side, "columns": drawn.images.columns},
        "ways": drawn.ways and {"side": drawn.ways.side, "columns": drawn.ways.columns},
    }
    return json.dumps(told, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
