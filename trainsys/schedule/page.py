"""Pictures and a table on one HTML page that needs nothing else: no script, no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from html import escape

_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1b2733; margin: 2rem auto; max-width: 110rem; padding: 0 1.5rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 0.4rem; }
p.about { color: #55636f; margin-top: 0; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.3rem 0.9rem; text-align: right; border-bottom: 1px solid #e3e6e8; white-space: nowrap; }
th { color: #55636f; font-weight: 600; } td.text, th.text { text-align: left; white-space: normal; }
code { font-size: 0.92em; background: #f3f4f5; padding: 0.1rem 0.3rem; border-radius: 3px; }
img { max-width: 100%; height: auto; }"""


def html_page(
    title: str,
    about: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    pictures: Sequence[tuple[str, bytes]],
) -> str:
    """The page: a title, one table, notes, then PNGs under headings of their own.

    Args:
        rows: cells as text; the first and the last column stand left.
        pictures: (heading, contents of a PNG).
    """
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="about">{escape(about)}</p>']
    parts += ["<table>", _row(headings, "th"), *(_row(row, "td") for row in rows), "</table>"]
    if notes:
        parts += ["<ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul>"]
    for heading, png in pictures:
        source = f"data:image/png;base64,{b64encode(png).decode()}"
        parts += [f"<h2>{escape(heading)}</h2>", f'<img alt="{escape(heading)}" src="{source}">']
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>\n{_STYLE}\n</style>'
    return "\n".join(["<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *parts, "</body></html>", ""])


def _row(cells: Sequence[str], tag: str) -> str:
    inner = []
    for place, cell in enumerate(cells):
        text = place in (0, len(cells) - 1)
        inner.append(f"<{tag}{' class=text' if text else ''}>{escape(cell)}</{tag}>")
    return f"<tr>{''.join(inner)}</tr>"
