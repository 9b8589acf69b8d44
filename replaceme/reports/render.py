"""Write a table of results as csv (full precision), markdown, HTML and LaTeX (rounded, in three parts).

The parts are the summary, the single tasks, and the cost: size, and the speed, which alone depends on the machine and
the time, where it was measured.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.exports import COLUMN
from replaceme.config.metrics import every_metric
from replaceme.config.tables import CACHE, DIVERGENCE
from replaceme.core.files import write_text
from replaceme.reports.tables import task_columns

if TYPE_CHECKING:
    import pandas

TERMINAL = 160
ERROR = re.compile(r" ± \S+")
CONTEXT = ("model", "calibration")  # columns shown only where they differ
COMPARED = ("average", "average_vs_identity")  # columns that say nothing without their standard errors


@dataclass(frozen=True)
class Column:
    """A column for display: `scale` multiplies the value; `style` is text, percent, signed, significant or count.

    `best` is max, min or empty: which value is the best one among models of one size.
    """

    header: str
    source: str
    style: str = "text"
    scale: float = 1.0
    best: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Part:
    """One of the tables shown: title, columns, cells as text (row by row), and the best cells of each size."""

    title: str
    columns: Sequence[Column]
    cells: Sequence[Sequence[str]]
    best: Sequence[Sequence[bool]]


SUMMARY = (
    Column("avg %", "average", "percent", 100, "max", "mean accuracy over the tasks ± standard error"),
    Column("vs drop", "average_vs_identity", "signed", 100, "max", "points of average above dropping the same blocks"),
    Column("RP %", "rp", "percent", 1, "max", "average in percent of the unpruned model's"),
    Column("ppl", "perplexity", "significant", 1, "min", "perplexity ± standard error"),
    Column(
        "Δ log ppl",
        "log_perplexity_vs_identity",
        "signed2",
        1,
        "min",
        "log perplexity minus that of dropping the blocks",
    ),
    Column(
        "KL", "kl", "significant", 1, "min", "mean divergence from the unpruned model, nats per token of unseen text"
    ),
    Column("text ppl", "text_perplexity", "significant", 1, "min", "perplexity of that text, by tokens"),
    Column("residual", "residual", "significant", 1, "min", "share of the target's energy that the fit leaves"),
)
SIZE = (
    Column("parameters", "parameters", "count", meaning="number of parameters"),
    Column("MB", "file_bytes", "percent", 1e-6, meaning="size of the weights on disk, 10^6 bytes"),
    Column("cache B", CACHE, "count", meaning="key-value cache of a token, bytes"),
)
SPEED = (
    Column("prefill tok/s", "prefill_tokens_per_s", "rate", 1, "max", "prompt tokens per second, median"),
    Column("decode tok/s", "decode_tokens_per_s", "rate", 1, "max", "new tokens per second, median"),
    Column("latency ms", "latency_s", "rate", 1e3, "min", "a prompt and the new tokens after it, median"),
    Column("peak MB", "peak_memory_bytes", "rate", 1e-6, "min", "peak memory, 10^6 bytes"),
)


def write(frame: "pandas.DataFrame", prefix: str | Path, caption: str) -> list[Path]:
    """Write <prefix>.csv, .md, .html and .tex, each atomically, and return their paths; missing values stay empty."""
    legend = "Value ± standard error; bold: best of its size."
    return write_parts(tables(frame), frame, prefix, caption, _notes(frame), legend)


def write_parts(
    parts: Sequence[Part],
    frame: "pandas.DataFrame",
    prefix: str | Path,
    caption: str,
    notes: Sequence[str],
    legend: str,
) -> list[Path]:
    """Write parts as <prefix>.md, .html and .tex with notes below them, and the frame behind them as .csv.

    `legend` says on the page how its cells are to be read.
    """
    from replaceme.reports.html import html

    texts = {
        ".csv": frame.to_csv(index=False, lineterminator="\n"),
        ".md": markdown(parts, caption, notes),
        ".html": html(parts, caption, notes, legend),
        ".tex": _latex(parts, caption, notes),
    }
    # not with_suffix: the name of a table may hold dots
    paths = [Path(f"{prefix}{suffix}") for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    return paths


def tables(frame: "pandas.DataFrame") -> list[Part]:
    """Return the three parts of a table; name columns with one value for all rows become notes."""
    names = [
        Column(name, name) for name in ("model", "calibration", "cut", "fit") if name not in _constant(frame, CONTEXT)
    ]
    if "healing" in frame:
        names.append(Column("healed by", "healing", meaning="training after the shortening; empty: none"))
    if "by" in frame:
        names.append(Column("by", "by", meaning="what finds the numbers that are new; a gradient's take the longest"))
    sizes = [Column("removed", "span", meaning="blocks removed, start included, end not")]
    sizes += [Column("ratio %", "compression", "percent", 100, meaning="share of the parameters removed")]
    tasks = task_columns(list(frame.columns))
    shortened = _shortened(tasks)
    perplexities = frame.attrs.get("perplexities", ())
    accuracy = [
        Column(f"{shortened[task]} ppl", task, "significant", 1, "min", task)
        if task in perplexities
        else Column(shortened[task], task, "percent", 100, "max", task)
        for task in tasks
    ]
    return [
        part(
            "Summary",
            [*names, *sizes, *(one for one in SUMMARY if one.source not in DIVERGENCE or one.source in frame)],
            frame,
        ),
        part("Tasks, %", [*names, *accuracy], frame),
        part("Cost", [*names, *_known(SIZE, frame), *_exports(frame), *_known(SPEED, frame)], frame),
    ]


def _known(columns: Sequence[Column], frame: "pandas.DataFrame") -> list[Column]:
    """Return the columns that a table has."""
    return [column for column in columns if column.source in frame]


def _exports(frame: "pandas.DataFrame") -> list[Column]:
    """Return the columns of other programs."""
    return [
        Column(name.removeprefix(COLUMN), name, meaning="whether it computes the same from the folder as transformers")
        for name in frame.columns
        if name.startswith(COLUMN)
    ]


def _constant(frame: "pandas.DataFrame", names: Sequence[str]) -> dict[str, Any]:
    """Return the columns among `names` with one value (missing values apart), with that value."""
    values = {name: frame[name].dropna().unique() for name in names}
    return {name: found[0] for name, found in values.items() if len(found) == 1}


def _shortened(tasks: Sequence[str]) -> dict[str, str]:
    """Return task names without the word before the first underscore, if all tasks share it."""
    prefixes = {task.split("_", 1)[0] for task in tasks}
    short = {task: task.split("_", 1)[1] for task in tasks if "_" in task}
    return short if len(prefixes) == 1 and len(short) == len(tasks) > 1 else {task: task for task in tasks}


def _notes(frame: "pandas.DataFrame") -> list[str]:
    """Return notes for what the columns leave out: constant names, how tasks were scored, how each cut was chosen."""
    notes = [f"{name.capitalize()}: {value}." for name, value in _constant(frame, CONTEXT).items()]
    notes += [f"{how}: {', '.join(names)}." for how, names in _grouped(frame.attrs.get("tasks", {})).items()]
    speeds = _grouped(frame.attrs.get("speeds", {}))
    for how, rows in speeds.items():
        of_some = f" of {', '.join(rows)}" if len(speeds) > 1 else ""
        notes.append(f"Speed{of_some}: {how}.")
    if coded := frame.attrs.get("own_code"):
        notes.append(f"Models that bring code, loaded with trust_remote_code: {', '.join(coded)}.")
    ways = {}
    for cut, metric, position in frame[["cut", "metric", "position"]].dropna(subset=["cut"]).itertuples(index=False):
        known = every_metric().get(metric)
        place = f" over {position} tokens" if known is not None and known.tells_position else ""
        ways[cut] = "Placed by hand" if metric == "given" else f"Chosen by {metric}{place}"
    return notes + [f"{way}: {', '.join(cuts)}." for way, cuts in _grouped(ways).items()]


def _grouped(ways: Mapping[str, str]) -> dict[str, list[str]]:
    """Return keys by value, in order of appearance."""
    groups: dict[str, list[str]] = {}
    for key, way in ways.items():
        groups.setdefault(way, []).append(key)
    return groups


def part(title: str, columns: Sequence[Column], frame: "pandas.DataFrame") -> Part:
    """Return the rows of a frame as cells; marks the best values of a size where a column says what is best."""
    cells, best = [], []
    winners = {column.source: _winners(column, frame) for column in columns if column.best}
    for index, row in frame.iterrows():
        cells.append([_cell(column, row) for column in columns])
        best.append([index in winners.get(column.source, ()) for column in columns])
    return Part(title, columns, cells, best)


def _winners(column: Column, frame: "pandas.DataFrame") -> set[Any]:
    """Return the rows with the best value among several of the same model and number of removed blocks."""
    found: set[Any] = set()
    for _, group in frame.groupby(["model", "removed"], sort=False):
        values = group[column.source].astype(float).dropna()
        if values.nunique() > 1:
            found |= set(values.index[values == getattr(values, column.best)()])
    return found


def _cell(column: Column, row: "pandas.Series") -> str:
    """Return a cell with its standard error where the table has one."""
    import pandas

    value = row[column.source]
    if pandas.isna(value):
        return ""
    if column.style == "text":
        return str(value)
    value = float(value) * column.scale
    if column.style == "count":
        return f"{value:,.0f}"
    if column.style == "rate":
        return f"{value:.{max(0, 1 if value < 100 else 0)}f}"
    decimals = {"percent": 1, "signed": 1, "signed2": 2}.get(column.style, _decimals(value))
    text = _number(value, decimals, "+" if column.style.startswith("signed") else "")
    stderr = row.get(f"{column.source}_stderr")
    return text if stderr is None or pandas.isna(stderr) else f"{text} ± {_number(stderr * column.scale, decimals)}"


def _decimals(value: float) -> int:
    """Return the decimals for three significant digits, -1 for a power of ten."""
    size = abs(value)
    if size >= 1e5 or (size < 1e-4 and size > 0):
        return -1
    return next(
        decimals for limit, decimals in ((100, 0), (10, 1), (1, 2), (0.1, 3), (0.01, 4), (0, 5)) if size >= limit
    )


def _number(value: float, decimals: int, sign: str = "") -> str:
    return f"{value:{sign}.2e}" if decimals < 0 else f"{value:{sign}.{decimals}f}"


def markdown(parts: Sequence[Part], caption: str, notes: Sequence[str]) -> str:
    """Return parts as Markdown: caption, aligned tables under their titles, notes."""
    lines = [caption, ""] if caption else []
    for part in parts:
        lines += [f"**{part.title}**", "", *_grid(part), ""]
    return "\n".join(lines + [f"- {note}" for note in notes]) + "\n"


def _grid(part: Part) -> list[str]:
    """Return aligned rows with pipes; where all standard errors would make it too wide, only those of averages stay."""
    lines = _aligned(part, part.cells)
    if len(lines[0]) > TERMINAL:
        kept = [column.source in COMPARED for column in part.columns]
        lines = _aligned(part, [_with_errors(row, kept) for row in part.cells])
    return lines


def _with_errors(row: Sequence[str], kept: Sequence[bool]) -> list[str]:
    """Return the cells of a row without standard errors but for the columns that keep them."""
    return [cell if keep else ERROR.sub("", cell) for cell, keep in zip(row, kept, strict=True)]


def _aligned(part: Part, cells: Sequence[Sequence[str]]) -> list[str]:
    headers = [column.header for column in part.columns]
    left = [column.style == "text" for column in part.columns]
    widths = [max(3, *(len(row[i]) for row in [headers, *cells])) for i in range(len(headers))]
    rule = ["-" * width if at_left else "-" * (width - 1) + ":" for width, at_left in zip(widths, left, strict=True)]
    padded = [
        [
            text.ljust(width) if at_left else text.rjust(width)
            for text, width, at_left in zip(row, widths, left, strict=True)
        ]
        for row in [headers, *cells]
    ]
    return [f"| {' | '.join(row)} |" for row in [padded[0], rule, *padded[1:]]]


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Return text escaped so that LaTeX prints it literally."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex(parts: Sequence[Part], caption: str, notes: Sequence[str]) -> str:
    lines = ["% needs \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    for part in parts:
        layout = "".join("l" if column.style == "text" else "r" for column in part.columns)
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{escape_latex(f'{caption} ({part.title})')}}}"]
        lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule"]
        lines += [" & ".join(escape_latex(column.header) for column in part.columns) + r" \\", r"\midrule"]
        for row, best in zip(part.cells, part.best, strict=True):
            cells = [rf"\textbf{{{escape_latex(c)}}}" if b else escape_latex(c) for c, b in zip(row, best, strict=True)]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)
