"""Find what figures and references show and their tables will not have, before any job starts."""

from collections.abc import Iterable
from typing import Any

from replaceme.config.figures import COST_MEASURES, MEASURES, SIZES, FigureConfig
from replaceme.config.schema import Config
from replaceme.config.tables import CACHE, DIVERGENCE, SPEED, Row, TableConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.reports.plot_data import check_published
from replaceme.reports.published_values import check_reference, scaled


def figure_problems(config: Config, figure: FigureConfig) -> list[str]:
    """Return lines for measures that a figure's tables will not have, and for missing published values."""
    found = []
    if figure.needs_cost and config.cost is None:
        found.append("measures: costs are measured where the section `cost` is set; set it")
    tables = {name: config.tables[name] for name in figure.tables}
    for name, table in tables.items():
        if figure.kind == "heatmap":
            continue
        if table.evaluation is None:
            found.append(f"tables: {name!r} has no evaluation, so there is nothing to show; drop it")
            continue
        found += [f"measures: {line}" for line in _unmeasured(config, name, figure.columns, COST_MEASURES)]
    if figure.from_config is not None:
        section, key = figure.from_config
        names = {one for table in tables.values() for one in table.named(f"{section}s")}
        values = {one: getattr(getattr(config, f"{section}s")[one], key, None) for one in sorted(names)}
        found += [
            f"x: {section} {one!r} has no number under {key}" for one, value in values.items() if not _real(value)
        ]
    found += _alike(figure, {row for table in tables.values() for row in table.pruned})
    for what, check in (("measures", _check_measures), ("published", _check_published)):
        try:
            check(figure)
        except ReplaceMeError as error:
            found.append(f"{what}: {error}")
    return found


def _alike(figure: FigureConfig, rows: Iterable[Row]) -> list[str]:
    """Return a line for two rows that would be one bar of a figure."""
    if figure.kind != "bars" or not set(figure.lines) <= set(Row._fields):
        return []
    seen: dict[tuple, Row] = {}
    for row in sorted(rows, key=str):
        other = seen.setdefault(tuple(getattr(row, name) for name in figure.lines), row)
        if other != row:
            differ = next(name for name in Row._fields if getattr(row, name) != getattr(other, name))
            apart = ", ".join(name for name in Row._fields if name in (*figure.lines, differ))
            return [f"lines: {other} and {row} would be one bar; set `lines: [{apart}]`"]
    return []


def reference_problems(config: Config, name: str, table: TableConfig) -> list[str]:
    """Return lines for the reference of a table, if it has one, that does not fit its file or what the table will
    have.
    """
    if table.reference is None:
        return []
    try:
        check_reference(table.reference, table.row_names)
    except ReplaceMeError as error:
        return [str(error)]
    columns = dict.fromkeys(scaled(measure)[0] for measure in table.reference.columns.values())
    return [f"reference: {line}" for line in _unmeasured(config, name, columns, SIZES)]


def _unmeasured(config: Config, name: str, columns: Iterable[str], more: Iterable[str]) -> list[str]:
    """Return lines for columns that a table with an evaluation will not have, beside `more` that count as known: one
    for each that the evaluation can be told to measure, and one for the first of all others.
    """
    table = config.tables[name]
    evaluation = config.evaluations[table.evaluation]
    absent = {
        *(() if config.divergence_text(table) is not None else DIVERGENCE),
        *(() if table.speed else SPEED),
        *([CACHE] if evaluation.zeroshot else []),  # of language models alone
    }
    known = [*(one for one in MEASURES if one not in absent), *more, *evaluation.columns]
    missing = [column for column in columns if column not in known]
    possible = [] if evaluation.zeroshot else [column for column in missing if column in DIVERGENCE]
    lines = [f"{one} is not measured by table {name!r}; set `divergence` of its evaluation" for one in possible]
    others = [column for column in missing if column not in possible]
    return lines + [f"{one!r} is not measured by table {name!r}; it has {', '.join(known)}" for one in others[:1]]


def _check_measures(figure: FigureConfig) -> None:
    for measure in figure.measures:
        scaled(measure)


def _check_published(figure: FigureConfig) -> None:
    if figure.published is not None:
        check_published(figure)


def _real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
