"""Write README.md of a published run: every table in short, beside published values, and every figure.

It is for a reader who ran nothing: captions explain the figures, the first lines name command and machine.
"""

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replaceme.config.names import BESIDE
from replaceme.provenance.environment import described

DESCRIPTION = re.compile(r"<dc:description>(.*?)</dc:description>", re.DOTALL)


def overview(folder: Path, record: Mapping[str, Any]) -> str:
    """Return the page in markdown for a folder of copies of record; `record` has the command and the machine."""
    tables = sorted((path for path in (folder / "tables").glob("*.csv") if not _is_beside(path)), key=_in_order)
    figures = sorted((folder / "figures").glob("*.svg"), key=_in_order)
    parts = ["# Results", _made_by(record, (folder / "provenance.md").is_file())]
    parts += ["## Tables", *(_table(path) for path in tables)] if tables else []
    parts += ["## Figures", *(_figure(path) for path in figures)] if figures else []
    return "\n\n".join(parts) + "\n"


def summary(table: Path) -> str:
    """Return the caption and the first part, the summary, of a table's .md."""
    return "\n**".join(table.read_text(encoding="utf-8").split("\n**")[:2]).strip()


def _is_beside(table: Path) -> bool:
    """Return whether a table is derived from another one, with which it is shown."""
    ends = [end for end in BESIDE if table.stem.endswith(end)]
    return any(table.with_name(f"{table.stem.removesuffix(end)}.csv").is_file() for end in ends)


def _in_order(path: Path) -> list[Any]:
    """Return a sort key that puts table2 before table10, and numbers before other names."""
    return [(int(part), "") if part.isdecimal() else (10**6, part) for part in re.split(r"(\d+)", path.stem)]


def _made_by(record: Mapping[str, Any], with_provenance: bool) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    sources = "; models, texts and their hashes: [provenance](provenance.md)" if with_provenance else ""
    return f"Made by `{record['command']}` on {described(record['hardware'])}, with {packages}{sources}."


def _table(table: Path) -> str:
    """Return the section of a table: caption and summary, the comparison with published values, and the figure."""
    name = table.stem
    # not with_suffix: the name may hold dots
    files = {end: table.with_name(name + end) for end in (".md", ".svg", ".csv")}
    others = [table.with_name(f"{name}{end}.md") for end in reversed(BESIDE)]
    shown = (files[".md"], *others, files[".csv"])
    links = [f"[{path.name}](tables/{path.name})" for path in shown if path.is_file()]
    parts = [f"### {name}", summary(files[".md"])]
    parts += [_without_caption(path) for path in others if path.is_file()]
    if files[".svg"].is_file():
        parts.append(f"![{name}](tables/{name}.svg)")
    return "\n\n".join([*parts, f"Whole: {', '.join(links)}."])


def _without_caption(table: Path) -> str:
    """Return all parts of a table's .md without the caption."""
    text = table.read_text(encoding="utf-8")
    return text[max(text.find("**"), 0) :].strip()


def _figure(path: Path) -> str:
    """Return the section of a figure, with the caption from its own description."""
    found = DESCRIPTION.search(path.read_text(encoding="utf-8"))
    caption = html.unescape(found[1]).strip() if found else ""
    numbers = f"Numbers: [{path.stem}.csv](figures/{path.stem}.csv)."
    return f"### {path.stem}\n\n![{path.stem}](figures/{path.name})\n\n{caption}\n\n{numbers}"
