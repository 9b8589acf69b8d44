"""Draw the figures of config.yaml from their points (`plot_data`): lines, scatters, bars, heat maps.

Published values are hollow and dotted, or hatched, in the colour of the same measurement here.
"""

import dataclasses
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.figures import FigureConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.reports.figure_style import (
    COLORS,
    DASHES,
    MARKERS,
    MEASURES,
    NAMES,
    PLACES,
    figure_in_style,
    log_scale,
    whole_numbers,
)
from replaceme.reports.plot_data import of_baselines

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#555555"
LEGEND_ROWS = 3  # for which there is room
LEGEND_ROW = 0.17  # inches
WIDE = 20  # a scale is logarithmic where the largest value is so many times the least
PLACE_NAMES = {
    "removed": "blocks removed",
    "compression": "parameters removed (%)",
    "calibration.samples": "calibration sequences",
    "calibration.tokens": "tokens of a calibration sequence",
}
RELATIVE = {"baseline": "multiple of the unpruned model's", "least": "multiple of the least"}


@dataclass(frozen=True)
class Look:
    """Colour, marker and dash of a line, colour and hatch of a bar; published ones are hollow."""

    color: str
    marker: str
    dash: Any
    hatch: str | None
    published: bool


def draw(figure: FigureConfig, points: "pandas.DataFrame", out: str | Path) -> None:
    """Draw the points of a figure to `out` (.svg or .png); raises ReplaceMeError where there are none."""
    if points.empty:
        raise ReplaceMeError(f"{out}: no row has what the figure shows; look at the .csv of its tables")
    kinds = {"lines": _lines, "scatter": _scatter, "versus": _versus, "bars": _bars, "heatmap": _heat_maps}
    width, height = _size(figure, points)
    with figure_in_style(out, width, height, figure.title, figure.caption) as canvas:
        kinds[figure.kind](canvas, figure, points)


def _size(figure: FigureConfig, points: "pandas.DataFrame") -> tuple[float, float]:
    """Return the width and height of a figure in inches."""
    panels, measures = points["panel"].nunique(), points["measure"].nunique()
    if figure.kind == "bars":
        groups = measures * (~of_baselines(points)).groupby(points["measure"]).sum().max()
        return max(6.0, min(16.0, 1.6 + 0.5 * groups)), 4.6
    if figure.kind == "heatmap":
        return 1.0 + 4.4 * measures, 0.6 + 3.8 * panels
    if figure.kind in ("lines", "versus") and panels == 1:  # measures side by side
        return 1.2 + 4.2 * measures, 4.0
    return 1.2 + 3.4 * panels, 1.0 + 2.9 * measures


def _grid(canvas: "Figure", points: "pandas.DataFrame", beside: bool) -> list[tuple["Axes", str, str]]:
    """Return axes with their measure and panel: a row for each measure, or with one panel all beside one another."""
    measures, panels = list(dict.fromkeys(points["measure"])), list(dict.fromkeys(points["panel"]))
    shape = (1, len(measures)) if beside and len(panels) == 1 else (len(measures), len(panels))
    axes = canvas.subplots(*shape, squeeze=False, sharey="row" if len(panels) > 1 else False)
    names = [(measure, panel) for measure in measures for panel in panels]
    return [(one, *name) for one, name in zip(axes.flat, names, strict=True)]


def looks(figure: FigureConfig, points: "pandas.DataFrame") -> dict[tuple[str, bool], Look]:
    """Return the look of every line or bar but baselines, by label and whether it is published, in drawing order."""
    measured = list(dict.fromkeys(points.loc[~points["published"] & ~of_baselines(points), "line"]))
    published = list(dict.fromkeys(points.loc[points["published"], "line"]))
    same_as = figure.published.same_as if figure.published else {}
    order = [(name, False) for name in measured]
    for name in published:
        here = (same_as.get(name), False)
        order.insert(order.index(here) + 1 if here in order else len(order), (name, True))
    numbers = {name: place for place, name in enumerate(measured)}
    for name in published:
        numbers.setdefault(same_as.get(name, f"published {name}"), len(numbers))
    found = {}
    for name, is_published in order:
        k = numbers[same_as.get(name, f"published {name}") if is_published else name]
        marker = MARKERS[(k + k // len(COLORS)) % len(MARKERS)]
        again = k >= len(COLORS)  # the colours begin anew
        hatch, dash = ("////", DASHES[2]) if is_published else ("..." if again else None, DASHES[0])
        found[name, is_published] = Look(COLORS[k % len(COLORS)], marker, dash, hatch, is_published)
    return found


def _label(name: str, is_published: bool) -> str:
    return f"{name}, published" if is_published else name


def _measure_label(figure: FigureConfig, measure: str) -> str:
    name = MEASURES.get(measure, measure)
    # without its unit, which a ratio does not have
    return f"{name.split(' (')[0]},\n{RELATIVE[figure.relative_to]}" if figure.is_relative(measure) else name


def _lines(canvas: "Figure", figure: FigureConfig, points: "pandas.DataFrame") -> None:
    labelled: dict[str, Any] = {}
    styles = looks(figure, points)
    for axes, measure, panel in _grid(canvas, points, beside=True):
        shown = points[(points["measure"] == measure) & (points["panel"] == panel)]
        _draw_baselines(axes, shown)
        for (name, is_published), look in styles.items():
            line = shown[(shown["line"] == name) & (shown["published"] == is_published)].dropna(subset=["x"])
            if len(line):
                _one_line(axes, line.sort_values("x", kind="stable"), look, _label(name, is_published))
        axes.set_xlabel(PLACE_NAMES.get(figure.x, figure.x.replace(".", " ")))
        if axes.get_subplotspec().is_first_col() or not panel:
            axes.set_ylabel(_measure_label(figure, measure))
        axes.set_title(panel)
        _scales(axes, figure, shown)
        labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend_below(canvas, labelled)


def _draw_baselines(axes: "Axes", shown: "pandas.DataFrame") -> None:
    baselines = shown[of_baselines(shown)]
    for _, row in baselines.iterrows():
        label = "unpruned" if len(baselines) == 1 else f"{row['row']}, unpruned"
        axes.axhline(row["value"], color=GREY, linestyle=DASHES[1], linewidth=1.2, label=label)


def _one_line(axes: "Axes", line: "pandas.DataFrame", look: Look, label: str) -> None:
    axes.errorbar(
        line["x"],
        line["value"],
        yerr=line["stderr"].fillna(0),
        xerr=line["x_stderr"].fillna(0) if "x_stderr" in line else None,
        color=look.color,
        marker=look.marker,
        linestyle=look.dash,
        markerfacecolor="white" if look.published else None,
        markersize=5,
        capsize=2.5,
        linewidth=1.4,
        label=label,
    )


def _scales(axes: "Axes", figure: FigureConfig, shown: "pandas.DataFrame") -> None:
    """Make axes logarithmic where values, or numbers of the config, span much; whole numbers for blocks."""
    if _is_wide(shown["value"]) or (shown["measure"] == "perplexity").all():
        log_scale(axes)
    places = shown["x"].dropna()
    if figure.x == "removed":
        whole_numbers(axes, y=False)
    elif figure.from_config is not None and len(places) and places.min() > 0 and places.max() / places.min() >= 8:
        log_scale(axes, "x", sorted(set(places)))


def _is_wide(values: "pandas.Series") -> bool:
    values = values.dropna()
    return len(values) > 0 and values.min() > 0 and values.max() > WIDE * values.min()


def _legend_below(canvas: "Figure", labelled: dict[str, Any]) -> None:
    """Draw one legend for all panels, in as many columns as fit; many rows make the figure higher."""
    if len(labelled) > 1:
        widest = 0.5 + 0.075 * max(map(len, labelled))  # inches of a handle and of a letter
        columns = max(1, min(len(labelled), 5, int(canvas.get_figwidth() / widest)))
        more = math.ceil(len(labelled) / columns) - LEGEND_ROWS
        canvas.set_figheight(canvas.get_figheight() + max(0, more) * LEGEND_ROW)
        canvas.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=columns, fontsize=8)


def _scatter(canvas: "Figure", figure: FigureConfig, points: "pandas.DataFrame") -> None:
    labelled: dict[str, Any] = {}
    for axes, measure, panel in _grid(canvas, points, beside=False):
        shown = points[(points["measure"] == measure) & (points["panel"] == panel)]
        distance = panel.rpartition(", ")[2]
        correlations = []
        for (name, _), look in looks(figure, points).items():
            line = shown[shown["line"] == name]
            if line.empty:
                continue
            _one_line(axes, line.sort_values("x", kind="stable"), dataclasses.replace(look, dash=""), name)
            chosen = line.loc[line["x"].idxmin()]
            axes.plot(chosen["x"], chosen["value"], "*", markersize=14, color=look.color, markeredgecolor="white")
            for x, y, start in line[["x", "value", "start"]].itertuples(index=False):
                axes.annotate(f"{start:.0f}", (x, y), xytext=(6, 4), textcoords="offset points", fontsize=6, color=GREY)
            if line["x"].nunique() > 2 and line["value"].nunique() > 1:
                correlations.append(f"{name} {line['x'].corr(line['value'], method='spearman'):+.2f}")
        place = f", {PLACES[figure.position]}" if figure.position != "all" and distance != "residual" else ""
        axes.set_xlabel(NAMES[distance] + place)
        if axes.get_subplotspec().is_first_col():
            axes.set_ylabel(_measure_label(figure, measure))
        heading = panel.rpartition(", ")[0]
        axes.set_title(
            f"{heading}\n" * bool(heading) + f"rank correlation: {', '.join(correlations) or 'none'}", fontsize=8
        )
        if _is_wide(shown["value"]) or measure == "perplexity":
            log_scale(axes)
        labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend_below(canvas, labelled)


def _versus(canvas: "Figure", figure: FigureConfig, points: "pandas.DataFrame") -> None:
    labelled: dict[str, Any] = {}
    for axes, measure, panel in _grid(canvas, points, beside=True):
        shown = points[(points["measure"] == measure) & (points["panel"] == panel)]
        _draw_baselines(axes, shown)
        for (name, _), look in looks(figure, points).items():
            line = shown[shown["line"] == name].dropna(subset=["x"])
            if len(line):
                _one_line(axes, line, dataclasses.replace(look, dash=""), name)
        _write_correlation(axes, shown[~of_baselines(shown)].dropna(subset=["x"]))
        axes.set_xlabel(MEASURES.get(figure.across, figure.across))
        if axes.get_subplotspec().is_first_col() or not panel:
            axes.set_ylabel(_measure_label(figure, measure))
        axes.set_title(panel)
        for which, values, column in (("x", shown["x"], figure.across), ("y", shown["value"], measure)):
            if _is_wide(values) or column == "perplexity":
                log_scale(axes, which)
        labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend_below(canvas, labelled)


def _write_correlation(axes: "Axes", rows: "pandas.DataFrame") -> None:
    """Write Spearman's rank correlation of the rows, and their number, into the upper corner that they leave empty."""
    if rows["x"].nunique() < 3 or rows["value"].nunique() < 2:
        return
    rank = rows["x"].corr(rows["value"], method="spearman")
    place, side = (0.98, "right") if rank < 0 else (0.02, "left")
    axes.margins(y=0.15)  # room for it
    words = f"rank correlation {rank:+.2f} (n = {len(rows)})"
    axes.text(place, 0.98, words, ha=side, va="top", fontsize=8, transform=axes.transAxes)


def _bars(canvas: "Figure", figure: FigureConfig, points: "pandas.DataFrame") -> None:
    """Draw multiples as groups of one panel, measures with a unit of their own in a panel each."""
    measures = list(dict.fromkeys(points["measure"]))
    relative = [measure for measure in measures if figure.is_relative(measure)]
    groups = [relative] * bool(relative) + [[measure] for measure in measures if measure not in relative]
    styles = looks(figure, points)
    labelled: dict[str, Any] = {}
    panels = canvas.subplots(1, len(groups), squeeze=False, width_ratios=[len(group) for group in groups])
    for axes, group in zip(panels.flat, groups, strict=True):
        shown = points[points["measure"].isin(group)]
        for place, ((name, is_published), look) in enumerate(styles.items()):
            bars = shown[(shown["line"] == name) & (shown["published"] == is_published)]
            at = [group.index(measure) + _offset(place, len(styles)) for measure in bars["measure"]]
            if len(bars):
                _one_set_of_bars(axes, bars, at, 0.8 / len(styles), look, _label(name, is_published))
        for _, row in shown[of_baselines(shown)].iterrows():
            axes.axhline(row["value"], color=GREY, linestyle=DASHES[1], linewidth=1.2, label="unpruned")
        if group is relative:
            axes.axhline(1, color=GREY, linestyle=DASHES[1], linewidth=1.2)
        axes.margins(y=0.12)
        axes.set_xticks(range(len(group)), [_tick(measure) for measure in group] if len(group) > 1 else [""])
        axes.set_ylabel(RELATIVE[figure.relative_to] if len(group) > 1 else _measure_label(figure, group[0]))
        axes.grid(axis="x", visible=False)
        if _is_wide(shown["value"]):
            log_scale(axes)
        labelled |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend_below(canvas, labelled)


def _tick(measure: str) -> str:
    return "\n".join(textwrap.wrap(MEASURES.get(measure, measure.replace("_", " ")).split(" (")[0], 14))


def _offset(place: int, count: int) -> float:
    return (place - (count - 1) / 2) * 0.8 / count


def _one_set_of_bars(
    axes: "Axes", bars: "pandas.DataFrame", at: list[float], width: float, look: Look, label: str
) -> None:
    drawn = axes.bar(
        at,
        bars["value"],
        width * 0.92,
        yerr=bars["stderr"].fillna(0) if bars["stderr"].notna().any() else None,
        color="white" if look.published else look.color,
        edgecolor=look.color if look.published else "white",
        hatch=look.hatch,
        error_kw={"elinewidth": 1, "capsize": 2},
        label=label,
    )
    axes.bar_label(drawn, [_short(value) for value in bars["value"]], padding=2, fontsize=7)


def _short(value: float) -> str:
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{decimals}f}" if value >= 0.1 else f"{value:.2g}"


def _heat_maps(canvas: "Figure", figure: FigureConfig, points: "pandas.DataFrame") -> None:
    for axes, measure, panel in _grid(
        canvas, points.sort_values("panel", kind="stable"), beside=points["panel"].nunique() == 1
    ):
        shown = points[(points["measure"] == measure) & (points["panel"] == panel)]
        matrix = shown.pivot(index="i", columns="j", values="value").to_numpy()
        image = axes.imshow(matrix, cmap="viridis", vmin=0, interpolation="nearest")
        axes.set_title(f"{panel.replace('/', ' on ')}, {PLACES[figure.position]}")
        axes.set_xlabel("after block j")
        axes.set_ylabel("after block i")
        axes.grid(False)
        whole_numbers(axes)
        canvas.colorbar(image, ax=axes, shrink=0.9, label=NAMES[measure])
