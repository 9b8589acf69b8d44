"""Render a results table as one HTML page that needs no network: own style, light and dark, sticky header."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replaceme.reports.render import Part

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --soft: #f3f5f8; --line: #d4d9e0; --mute: #5b6673; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --paper: #15181c; --soft: #20252b; --line: #3a424c; --mute: #9aa6b4; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 90rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.25rem; } h2 { font-size: 1rem; margin: 2rem 0 .5rem; }
.scroll { overflow: auto; max-height: 85vh; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { position: sticky; top: 0; background: var(--soft); font-weight: 600; }
.text { text-align: left; } tr:last-child td { border-bottom: 0; } tbody tr:hover td { background: var(--soft); }
tr.baseline td { background: var(--soft); font-style: italic; }
.error { color: var(--mute); font-size: .85em; font-weight: 400; } .best { font-weight: 700; }
.notes { color: var(--mute); font-size: .9rem; padding-left: 1.2rem; }
"""


def html(parts: Sequence["Part"], caption: str, notes: Sequence[str], legend: str = "") -> str:
    """Return the page; the best value among models of one size is bold, headers explain themselves on hovering."""
    body = "\n".join(f"<h2>{escape(part.title)}</h2>\n{_table(part)}" for part in parts)
    listed = "\n".join(f"<li>{escape(note)}</li>" for note in notes)
    said = f"<p>{escape(legend)}</p>\n" if legend else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(caption)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(caption)}</h1>\n"
        f'{said}{body}\n<ul class="notes">\n{listed}\n</ul>\n</body>\n</html>\n'
    )


def _table(part: "Part") -> str:
    head = "".join(
        f'<th scope="col"{_class(["text"] if column.style == "text" else [])} title="{escape(column.meaning)}">'
        f"{escape(column.header)}</th>"
        for column in part.columns
    )
    rows = []
    for cells, best in zip(part.cells, part.best, strict=True):
        kind = _class(["baseline"] if "baseline" in cells else [])
        marks = [
            ["text"] * (column.style == "text") + ["best"] * mark
            for column, mark in zip(part.columns, best, strict=True)
        ]
        rows.append(f"<tr{kind}>" + "".join(map(_cell, cells, marks)) + "</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _cell(text: str, marks: list[str]) -> str:
    """Return `value ± error` as HTML in which error and published value are less prominent."""
    value, _, rest = text.partition(" ± ")
    error, _, more = rest.partition(" ")
    tail = f' <span class="error">± {escape(error)}</span>' if error else ""
    tail += f" {escape(more)}" if more else ""
    return f"<td{_class(marks)}>{escape(value)}{tail}</td>"


def _class(names: list[str]) -> str:
    return f' class="{" ".join(names)}"' if names else ""
