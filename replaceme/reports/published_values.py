"""Show a table in the layout of a published one: each cell measured beside published, and their difference.

The published rows and their order come from a CSV file; the config says which row of the table stands for each. A cell
that was not run is empty and counted, never filled in.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.reference import ReferenceConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import note_read
from replaceme.reports.tables import KEYS

if TYPE_CHECKING:
    import pandas

    from replaceme.reports.render import Part

NAMES = KEYS[:5]
Row = str | Mapping[str, str] | None


@dataclass(frozen=True)
class Compared:
    """A published table beside the measured one: the number of cells, and how many were `run` here."""

    frame: "pandas.DataFrame"
    cells: int
    run: int

    @property
    def note(self) -> str:
        """Line that says how much of it was run."""
        return f"{self.run} of {self.cells} cells run here, {self.cells - self.run} empty."


def check_reference(reference: ReferenceConfig, rows: Sequence[str]) -> None:
    """Raise ReplaceMeError when a reference does not fit its file or a table of `rows` (`model/...`)."""
    names, rows_there = _header(reference.file)
    missing = [column for column in reference.columns if column not in names]
    if missing:
        raise ReplaceMeError(f"{reference.file}: no column {missing[0]!r}; it has {', '.join(names)}")
    if rows_there != len(reference.rows):
        raise ReplaceMeError(f"{reference.file}: has {rows_there} rows, {len(reference.rows)} are given under rows")
    unknown = sorted(_named(reference) - set(rows))
    if unknown:
        raise ReplaceMeError(f"reference: {unknown[0]!r} is no row of the table; add what it names, or set it to null")
    for measure in reference.columns.values():
        scaled(measure)


def compare(table: "pandas.DataFrame", reference: ReferenceConfig) -> Compared:
    """Return the published table, with columns `<name>`, `<name>_stderr`, `<name>_published` and `<name>_difference`.

    `table` is that of `tables.collect`; measured values are scaled to the unit of the published ones. The difference,
    measured minus published, is there only where `same_models`. Raises ReplaceMeError for a measure the table lacks.
    """
    published = _read(reference.file)
    measured = {"/".join(str(part) for part in names if part): row for names, row in _by_name(table).items()}
    gone = sorted(_named(reference) - measured.keys())
    if gone:
        raise ReplaceMeError(f"{reference.file}: {gone[0]!r} is no row of the table; make the table again")
    frame = published[[name for name in published.columns if name not in reference.columns]].copy()
    run = 0
    for column, measure in reference.columns.items():
        name, scale = scaled(measure)
        if name not in table.columns:
            raise ReplaceMeError(f"{reference.file}: the table measures no {name!r}; it has {', '.join(table.columns)}")
        rows = [measured.get(_of(row, column)) for row in reference.rows]
        for ending in ("", "_stderr"):
            frame[f"{column}{ending}"] = [_value(row, f"{name}{ending}", scale) for row in rows]
        frame[f"{column}_published"] = published[column]
        if reference.same_models:
            frame[f"{column}_difference"] = frame[column] - published[column]
        run += int(frame[column].notna().sum())
    return Compared(frame, len(published) * len(reference.columns), run)


def shown(compared: Compared, reference: ReferenceConfig, title: str) -> "Part":
    """Return the comparison for display: `measured ± error (published)` in each cell, empty where nothing was run."""
    from replaceme.reports.render import Column, Part

    labels = [name for name in compared.frame.columns if _owner(name, reference) is None]
    columns = [Column(name.replace("_", " "), name) for name in labels]
    columns += [
        Column(name.replace("_", " "), name, "significant", meaning=f"{measure} ± standard error (published)")
        for name, measure in reference.columns.items()
    ]
    cells = [
        [
            *("" if _is_missing(row[label]) else f"{row[label]}" for label in labels),
            *(_cell(row, column) for column in reference.columns),
        ]
        for _, row in compared.frame.iterrows()
    ]
    return Part(title, columns, cells, [[False] * len(columns) for _ in cells])


def notes(compared: Compared, reference: ReferenceConfig) -> list[str]:
    """Return lines that name the owner of the published values and how much was run here."""
    whose = "the same models" if reference.same_models else "other models, so that only directions can be compared"
    return [f"In brackets: published, of {whose}.", compared.note]


def _cell(row: "pandas.Series", column: str) -> str:
    published = row[f"{column}_published"]
    shown = "" if _is_missing(published) else f"({published:g})"
    if _is_missing(row[column]):
        return shown
    error = row[f"{column}_stderr"]
    width = "" if _is_missing(error) else f" ± {error:.2g}"
    return f"{row[column]:.4g}{width} {shown}".strip()


def _owner(name: str, reference: ReferenceConfig) -> str | None:
    """Return the compared column that a column of the frame belongs to."""
    endings = ("", "_stderr", "_published", "_difference")
    return next((column for column in reference.columns for ending in endings if name == f"{column}{ending}"), None)


def _is_missing(value: Any) -> bool:
    import pandas

    return bool(pandas.isna(value))


def _of(row: Row, column: str) -> str | None:
    """Return the row of the table that stands for a cell of a published row."""
    return row.get(column) if isinstance(row, Mapping) else row


def _named(reference: ReferenceConfig) -> set[str]:
    """Return the rows of a table that a reference names."""
    return {one for row in reference.rows for column in reference.columns if (one := _of(row, column)) is not None}


def _by_name(table: "pandas.DataFrame") -> dict[tuple[str, ...], "pandas.Series"]:
    """Return rows by (model, calibration, cut, fit, healing); baselines by their model alone."""
    found = {}
    for _, row in table.iterrows():
        names = tuple(None if _is_missing(row.get(name)) else row[name] for name in NAMES)
        found[names if names[1] is not None else (names[0],)] = row
    return found


def scaled(measure: str) -> tuple[str, float]:
    """Split `average * 100` into a measure and its factor."""
    name, star, factor = (part.strip() for part in measure.partition("*"))
    try:
        return name, float(factor) if star else 1.0
    except ValueError:
        raise ReplaceMeError(f"{measure!r} is no measure; write `average` or `average * 100`") from None


def _value(row: "pandas.Series | None", name: str, scale: float) -> float | None:
    if row is None or name not in row.index or _is_missing(row[name]):
        return None
    return scale * float(row[name])


def _read(path: str | Path) -> "pandas.DataFrame":
    import pandas

    _check_there(path)
    note_read(path)
    return pandas.read_csv(path)


def _header(path: str | Path) -> tuple[list[str], int]:
    """Return the columns of a CSV file and the number of its rows, without pandas, since this runs at every start."""
    _check_there(path)
    with Path(path).open(encoding="utf-8", newline="") as file:
        header, *rows = [row for row in csv.reader(file) if row] or [[]]
    return header, len(rows)


def _check_there(path: str | Path) -> None:
    if not Path(path).is_file():
        raise ReplaceMeError(f"{path}: no such file; `reference.file` is a CSV of published values")
