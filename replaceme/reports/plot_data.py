"""Compute the numbers of a figure of config.yaml: a row per point, from tables, costs, distances, published files.

Long form, one column each for measure, panel, line, x, value, stderr and published; exactly this is drawn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.figures import FORETOLD, FigureConfig
from replaceme.config.tables import BASELINE, KEYS
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import plain
from replaceme.cuts.choose import distance_of
from replaceme.reports.csv_files import read_csv
from replaceme.reports.published_values import scaled

if TYPE_CHECKING:
    import pandas

NAMES = list(KEYS[:4])
POINT = ["measure", "panel", "line", "x", "value", "stderr", "published", "row"]
MORE = {"scatter": ["start"], "versus": ["x_stderr"]}  # columns of some kinds
SPAN = re.compile(r"\[([\d.]+), ([\d.]+)\)")


@dataclass(frozen=True)
class Sources:
    """The sources of the numbers: .csv of tables and of costs, distances by `model/calibration`, x by name in the
    config, and cuts, each with its `model/calibration`.
    """

    tables: Sequence[Path] = ()
    costs: Sequence[Path] = ()
    distances: Mapping[str, Path] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    cuts: Sequence[tuple[str, Path]] = ()


def points(figure: FigureConfig, sources: Sources) -> "pandas.DataFrame":
    """Return all points of a figure, measured ones first, then published ones.

    Baselines have the line `baseline` and no x; a heat map has i and j, blocks, in place of line and x. Raises
    ReplaceMeError for files, measures or cuts that the figure cannot use.
    """
    import pandas

    if figure.kind == "heatmap":
        return _pairs(figure, sources)
    rows = _rows(figure, sources)
    if figure.kind == "scatter":
        found = _scattered(figure, rows, sources)
    else:
        found = _measured(figure, rows, _places(figure, rows, sources.numbers))
    columns = [*POINT, *MORE.get(figure.kind, [])]
    frame = pandas.DataFrame(found, columns=columns)
    _check_single(figure, frame)
    if figure.published is None:
        return frame
    return pandas.concat([frame, pandas.DataFrame(_published(figure), columns=columns)], ignore_index=True)


def _rows(figure: FigureConfig, sources: Sources) -> "pandas.DataFrame":
    """Return the rows of all tables, each once, with their costs and the labels `line` and `panel`.

    A healed row has the name of its healing in its label, and no costs, as these are those of its fit.
    """
    import pandas

    rows = pandas.concat([read_csv(path) for path in sources.tables], ignore_index=True)
    rows["healing"] = rows.get("healing")
    rows = rows.drop_duplicates([*NAMES, "healing"], ignore_index=True)
    healed = rows["healing"].notna()
    if sources.costs:
        costs = pandas.concat([read_csv(path) for path in sources.costs], ignore_index=True).drop_duplicates(NAMES)
        rows = rows.merge(costs, how="left", on=NAMES)
        rows.loc[healed, [name for name in costs if name not in NAMES]] = None
    missing = [name for name in (*figure.columns, *figure.lines) if name not in rows.columns]
    if missing:
        raise ReplaceMeError(f"{sources.tables[0]}: no column {missing[0]!r}; it has {', '.join(rows.columns)}")
    pruned = rows["fit"] != BASELINE
    varying = [name for name in figure.lines if rows.loc[pruned, name].nunique(dropna=False) > 1] or figure.lines[-1:]
    labels = rows[varying].fillna("").astype(str).agg(", ".join, axis=1)
    labels[healed] += ", " + rows.loc[healed, "healing"].astype(str)
    rows["line"] = labels.where(pruned, BASELINE)
    rows["panel"] = rows[figure.panels].astype(str) if figure.panels else ""
    return rows


def _places(figure: FigureConfig, rows: "pandas.DataFrame", numbers: Mapping[str, float]) -> "pandas.Series":
    """Return the x of each row, percent for the compression; none for bars, and for rows without it."""
    import pandas

    if figure.kind == "bars":
        return pandas.Series(float("nan"), index=rows.index)
    if figure.across is not None:
        return rows[figure.across].astype(float)
    if figure.from_config is not None:
        section, _ = figure.from_config
        return rows[section].map(lambda name: numbers.get(name, float("nan"))).astype(float)
    return rows[figure.x].astype(float) * (100 if figure.x == "compression" else 1)


def _measured(figure: FigureConfig, rows: "pandas.DataFrame", places: "pandas.Series") -> list[dict[str, Any]]:
    """Return a point for each measure of each row; a baseline only where values are not relative."""
    found = []
    for measure in figure.measures:
        name, scale = scaled(measure)
        for index, row in rows.iterrows():
            baseline, relative = row["fit"] == BASELINE, figure.is_relative(measure)
            if (baseline and relative) or row[name] != row[name]:
                continue
            unit = _unit(figure, rows, row, name) if relative else 1 / scale
            found.append(
                {
                    **row[["panel", "line"]],
                    "measure": measure,
                    "x": float("nan") if baseline else places[index],
                    "value": row[name] / unit,
                    "stderr": row.get(f"{name}_stderr", float("nan")) / unit,
                    "published": False,
                    "row": row["model"] if baseline else "/".join(row[[*NAMES, "healing"]].dropna()),
                    "start": row.get("start"),
                    "x_stderr": float("nan") if baseline else row.get(f"{figure.across}_stderr", float("nan")),
                }
            )
    return found


def _unit(figure: FigureConfig, rows: "pandas.DataFrame", row: "pandas.Series", name: str) -> float:
    """Return the number that a row's measure is divided by."""
    same_model, baseline = rows["model"] == row["model"], rows["fit"] == BASELINE
    values = rows.loc[same_model & (baseline if figure.relative_to == "baseline" else ~baseline), name].dropna()
    if figure.relative_to == "baseline" and values.empty:
        raise ReplaceMeError(f"figure: the baseline of {row['model']} has no {name}; drop `relative_to: baseline`")
    return float(values.min()) if len(values) else float("nan")


def _scattered(figure: FigureConfig, rows: "pandas.DataFrame", sources: Sources) -> list[dict[str, Any]]:
    """Return for each distance the points of all rows over the distance across their cut; `start` names the cut."""
    import pandas

    cuts = rows[rows["fit"] != BASELINE].copy()
    spans = [SPAN.fullmatch(str(span)) for span in cuts["span"]]
    for span, name, shown in zip(spans, cuts["cut"], cuts["span"], strict=True):
        if span is None:
            raise ReplaceMeError(f"figure: {name} removes {shown}; a scatter shows cuts of one run")
    cuts["start"] = [plain(float(span[1])) for span in spans]
    found, foretold = [], _foretold(sources.cuts)
    for distance in figure.distances:
        if distance == "residual":
            places = cuts["residual"]
        elif distance in FORETOLD:
            keys = zip(cuts["model"], cuts["calibration"], cuts["start"], cuts["removed"], strict=True)
            values = [foretold.get((f"{m}/{c}", start, start + n), {}).get(distance) for m, c, start, n in keys]
            places = pandas.Series(values, index=cuts.index, dtype="float64")
        else:
            values = [
                _across(figure, sources, row, distance, span)
                for (_, row), span in zip(cuts.iterrows(), spans, strict=True)
            ]
            places = pandas.Series(values, index=cuts.index)
        panel = cuts["panel"].map(lambda name, distance=distance: f"{name}, {distance}" if name else distance)
        found += _measured(figure, cuts.assign(panel=panel), places)
    return [point for point in found if point["x"] == point["x"]]


def _foretold(cuts: Sequence[tuple[str, Path]]) -> dict[tuple[str, int, int], dict[str, float]]:
    """Return what was measured of each candidate of some cuts, by `model/calibration` and its run of blocks."""
    return {(pair, one["start"], one["end"]): one for pair, path in cuts for one in Cut.load(path).candidates}


def _across(figure: FigureConfig, sources: Sources, row: "pandas.Series", distance: str, span: re.Match) -> float:
    """Return the distance between the states before and after the cut of a row."""
    from replaceme.cuts.distances import load

    matrices, _ = load(sources.distances[f"{row['model']}/{row['calibration']}"])
    return distance_of(matrices, f"{distance}_{figure.position}", tuple(map(float, span.groups())))


def _matrix(figure: FigureConfig, path: Path, distance: str) -> Any:
    from replaceme.cuts.distances import load

    matrices, _ = load(path)
    name = f"{distance}_{figure.position}"
    if name not in matrices:
        raise ReplaceMeError(f"{path}: no {distance}; run `replaceme distances` again with --representations")
    return matrices[name]


def _pairs(figure: FigureConfig, sources: Sources) -> "pandas.DataFrame":
    """Return every entry of the matrices of a heat map."""
    import pandas

    found = []
    for where, path in sources.distances.items():
        for distance in figure.distances:
            matrix = _matrix(figure, path, distance).tolist()
            found += [(distance, where, i, j, value) for i, line in enumerate(matrix) for j, value in enumerate(line)]
    return pandas.DataFrame(found, columns=["measure", "panel", "i", "j", "value"])


def of_baselines(frame: "pandas.DataFrame") -> "pandas.Series":
    """Return which points belong to baselines; a published line may share their name."""
    return (frame["line"] == BASELINE) & ~frame["published"].astype(bool)


def _published(figure: FigureConfig) -> list[dict[str, Any]]:
    published, frame = figure.published, read_csv(figure.published.file, (figure.published.label,))
    columns = {measure: scaled(column) for measure, column in published.columns.items()}
    return [
        {
            "measure": measure,
            "panel": "",
            "line": str(row[published.label]),
            "x": float("nan") if published.x is None else float(row[published.x]),
            "value": scale * float(row[column]),
            "published": True,
        }
        for measure, (column, scale) in columns.items()
        for _, row in frame.iterrows()
        if row[column] == row[column]
    ]


def check_published(figure: FigureConfig) -> None:
    """Raise ReplaceMeError when a file of published values lacks a column or row of the figure."""
    published = figure.published
    frame = read_csv(published.file, (published.label,))
    named = [
        published.label,
        *([published.x] if published.x else []),
        *(scaled(one)[0] for one in published.columns.values()),
    ]
    missing = [name for name in named if name not in frame.columns]
    if missing:
        raise ReplaceMeError(f"{published.file}: no column {missing[0]!r}; it has {', '.join(frame.columns)}")
    unknown = sorted(set(published.same_as) - set(frame[published.label].astype(str)))
    if unknown:
        raise ReplaceMeError(f"{published.file}: no row is labelled {unknown[0]!r} under {published.label}")


def _check_single(figure: FigureConfig, frame: "pandas.DataFrame") -> None:
    """Raise ReplaceMeError where two rows would lie at one place of a line, or in one bar."""
    if figure.kind in MORE:
        return
    twice = frame[frame.duplicated(["measure", "panel", "line", "x"]) & ~of_baselines(frame)]
    if len(twice):
        first = twice.iloc[0]
        place = f" at {figure.x} {first['x']:g}" if figure.kind == "lines" else ""
        raise ReplaceMeError(f"figure: two rows of line {first['line']!r}{place}; tell them apart under `lines`")
