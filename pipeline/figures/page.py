"""A page of Markdown as one HTML file that needs nothing else: pictures and formulas are in it."""

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping

import matplotlib
from matplotlib.mathtext import math_to_image

_STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1f2328; max-width: 46rem; margin: 2rem auto;
       padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-size: .9rem }
td, th { border-bottom: 1px solid #d0d7de; padding: .3rem .7rem .3rem 0; text-align: left }
img { max-width: 100% } img.formula { display: block; margin: .8rem 0 }
"""


def to_html(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """Of headings, paragraphs, lists, tables, `$$ formula $$` and `![title](picture)` lines.

    `pictures`: PNGs by the names that the page calls them.
    """
    body = "\n".join(_blocks(markdown, pictures))
    title = html.escape(markdown.splitlines()[0].lstrip("# "))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def formula_svg(tex: str) -> str:
    """A formula in matplotlib's TeX as an SVG."""
    buffer = io.StringIO()
    # A fixed salt: the same formula is the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": tex, "mathtext.fontset": "stix"}):
        math_to_image(f"${tex}$", buffer, dpi=72, format="svg", color="#1f2328")
    return buffer.getvalue()


def _blocks(markdown: str, pictures: Mapping[str, bytes]) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", markdown.strip()):
        lines = block.splitlines()
        heading = re.match(r"(#+) (.*)", block)
        picture = re.fullmatch(r"!\[(.*)\]\((.*)\)", block)
        formula = re.fullmatch(r"\$\$ (.*) \$\$", block)
        if heading:
            level = len(heading[1])
            yield f"<h{level}>{html.escape(heading[2])}</h{level}>"
        elif picture:
            data = base64.b64encode(pictures[picture[2]]).decode()
            yield f'<img alt="{html.escape(picture[1])}" src="data:image/png;base64,{data}">'
        elif formula:
            data = base64.b64encode(formula_svg(formula[1]).encode()).decode()
            alt = html.escape(formula[1])
            yield f'<img class="formula" alt="{alt}" src="data:image/svg+xml;base64,{data}">'
        elif lines[0].startswith("|"):
            yield _table(lines)
        elif lines[0].startswith("- "):
            items = "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines)
            yield f"<ul>{items}</ul>"
        else:
            yield f"<p>{html.escape(block)}</p>"


def _table(lines: list[str]) -> str:
    rows = [[html.escape(cell.strip()) for cell in line.strip("|").split("|")] for line in lines]
    head = "".join(f"<th>{cell}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[2:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"
