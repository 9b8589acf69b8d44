"""Figures from result files: distance heat maps, the candidates of a cut, loss curves, quality over compression.

Their look is in `figure_style`; the figures that config.yaml declares are in `plots`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.metrics import by_position
from replaceme.config.tables import BASELINE
from replaceme.core.cut_record import Cut
from replaceme.core.files import read_json
from replaceme.reports.csv_files import read_csv
from replaceme.reports.figure_style import (
    COLORS,
    DASHES,
    MARKERS,
    NAMES,
    PLACES,
    figure_in_style,
    legend_outside,
    log_scale,
    whole_numbers,
)  # fmt: skip

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


def draw_distances(distances_path: str | Path, out: str | Path, title: str = "") -> None:
    """Draw heat maps of the [L, L] distances between hidden states: cosine and angular, over all and over last
    tokens.
    """
    from replaceme.cuts.distances import load

    matrices, _ = load(distances_path)
    with figure_in_style(out, 9, 7.6, title) as figure:
        for axes, name in zip(
            figure.subplots(2, 2).flat, ("cosine_all", "cosine_last", "angular_all", "angular_last"), strict=True
        ):
            metric, position = name.split("_")
            matrix = matrices[name].double().numpy()
            image = axes.imshow(matrix, cmap="viridis", vmin=0, interpolation="nearest")
            axes.set_title(f"{metric}, {PLACES[position]}")
            axes.set_xlabel("after block j")
            axes.set_ylabel("after block i")
            axes.grid(False)
            whole_numbers(axes)
            figure.colorbar(image, ax=axes, shrink=0.9, label=NAMES[metric])


def draw_enough(enough_json: str | Path, out: str | Path, title: str = "") -> None:
    """Draw the held-out residual of each cut over the tokens fitted on, and below how much each doubling changed it."""
    report = read_json(enough_json)
    curve, tolerance = report["curve"], 100 * report["tolerance"]
    tokens = [point["tokens"] / 1000 for point in curve]
    with figure_in_style(out, 7, 5.4, title) as figure:
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        for k, (start, end) in enumerate(report["cuts"]):
            look = {"color": COLORS[k], "marker": MARKERS[k], "markersize": 4, "linewidth": 1.3}
            label = f"blocks {start} to {end - 1}"
            panels[0].plot(tokens, [point["residuals"][k] for point in curve], label=label, **look)
            panels[1].plot(tokens[1:], [100 * abs(point["changes"][k]) for point in curve[1:]], **look)
        panels[0].set_ylabel(f"{NAMES['residual']},\nheld out, placement {report['placement']}")
        panels[1].axhline(
            tolerance, color="#555555", linestyle=DASHES[1], linewidth=1.2, label=f"tolerance, {tolerance:g}%"
        )
        panels[1].set_ylabel("its change (%)")
        panels[1].set_xlabel("thousand tokens that least squares is fitted on")
        if curve:
            for axes in panels:
                log_scale(axes)
            log_scale(panels[1], "x", [float(f"{place:.3g}") for place in tokens])
        legend_outside(panels[0])
        panels[1].legend(fontsize=8)


def draw_cut(cut_json: str | Path, out: str | Path, title: str = "") -> None:
    """Draw the metric of every candidate cut over its first block, the choice marked; other metrics measured below
    it.
    """
    cut = Cut.load(cut_json)
    candidates, metric = cut.candidates, cut.metric
    one_size = len({one["end"] - one["start"] for one in candidates}) == 1
    others = [name for name in NAMES if name != metric and one_size and all(name in one for one in candidates)]
    with figure_in_style(out, 7, 5.6 if others else 3.4, title) as figure:
        panels = figure.subplots(2 if others else 1, 1, sharex=True, squeeze=False)[:, 0]
        size = f"{cut.blocks} block{'s' if cut.blocks != 1 else ''}"
        place = f", {PLACES[cut.position]}" if metric in by_position() else ""
        panels[0].set_title(f"Removing {size}: {cut.span} of {cut.num_blocks}{place}")
        panels[-1].set_xlabel("first block removed")
        if not candidates:
            panels[0].text(
                0.5, 0.5, "placed by hand, no candidates measured", ha="center", transform=panels[0].transAxes
            )
            panels[0].set_yticks([])
            panels[0].set_xlim(0, cut.num_blocks)
            for start, end in cut.groups:
                panels[0].axvspan(start, end, color=COLORS[1], alpha=0.2)
            return
        _draw_choice(panels[0], cut)
        for index, name in enumerate(others):
            _line(panels[1], candidates, name, COLORS[2 + index], MARKERS[2 + index])
        if others:
            for start, _ in cut.groups:
                panels[1].axvline(start, color=COLORS[1], linewidth=1, linestyle=DASHES[1])
            panels[1].set_ylabel("other measures (no unit)")
            legend_outside(panels[1])
            values = [one[name] for one in candidates for name in others]
            if min(values) > 0 and max(values) > 100 * min(values):
                panels[1].set_yscale("log")
        whole_numbers(panels[-1], y=False)


def _draw_choice(axes: "Axes", cut: Cut) -> None:
    """Draw a line for each size of a chosen run, its candidates over their starts, and a star on each choice."""
    metric, parts = cut.metric, cut.parts or cut.groups
    values = {(one["start"], one["end"]): one[metric] for one in cut.candidates}
    sizes = sorted({end - start for start, end in parts})
    if any("round" in one for one in cut.candidates):
        _draw_rounds(axes, cut)
        return
    for index, size in enumerate(sizes):
        listed = [one for one in cut.candidates if one["end"] - one["start"] == size]
        if len(sizes) == 1:
            _line(axes, listed, metric, COLORS[0], "o")
        else:
            style = {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "markersize": 4}
            axes.plot([one["start"] for one in listed], [one[metric] for one in listed], label=f"size {size}", **style)
    for start, end in parts:
        axes.axvline(start, color=COLORS[1], linewidth=1, linestyle=DASHES[1])
        label = f"chosen: start {start}, {values[start, end]:.4g}"
        axes.plot([start], [values[start, end]], "*", markersize=15, color=COLORS[1], zorder=3, label=label)
    axes.set_ylabel(NAMES.get(metric, metric).replace(" (", "\n("))
    axes.set_ylim(bottom=0)
    legend_outside(axes)


def _draw_rounds(axes: "Axes", cut: Cut) -> None:
    """Draw a line for each round of an iterative search, with a star on the removed block or half of one."""
    metric = cut.metric
    for number in range(1 + max(one["round"] for one in cut.candidates)):
        listed = [one for one in cut.candidates if one["round"] == number]
        gone = min(listed, key=lambda one: (not one.get("kept", False), one[metric], one["start"]))
        color, starts = COLORS[number % len(COLORS)], [one["start"] for one in listed]
        axes.plot(starts, [one[metric] for one in listed], color=color, marker=MARKERS[number % len(MARKERS)], ms=3)
        label = f"{number + 1}. block {gone['start']}, {gone[metric]:.4g}"
        axes.plot([gone["start"]], [gone[metric]], "*", markersize=13, color=color, zorder=3, label=label)
    axes.set_ylabel(NAMES[metric])
    axes.set_yscale("log")  # the first blocks may cost a thousand times as much as others
    legend_outside(axes)


def _line(axes: "Axes", candidates: list[dict[str, Any]], name: str, color: str, marker: str) -> None:
    starts = [one["start"] for one in candidates]
    values = [one[name] for one in candidates]
    axes.plot(starts, values, color=color, marker=marker, markersize=4, linewidth=1.3, label=NAMES.get(name, name))


def draw_healing(healing_json: str | Path, out: str | Path, title: str = "") -> None:
    """Draw the training loss and the learning rate over the steps, and the held-out loss before and after."""
    report = read_json(healing_json)
    curve, loss = report["curve"], report["loss"]
    with figure_in_style(out, 7, 4.8, title) as figure:
        panels = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        steps = [point["step"] for point in curve]
        panels[0].plot(steps, [point["loss"] for point in curve], color=COLORS[0], linewidth=1, label="training")
        ends = ([0, report["steps"]], [loss["before"], loss["after"]])
        label = f"held out: {ends[1][0]:.4f} before, {ends[1][1]:.4f} after"
        panels[0].plot(*ends, color=COLORS[1], marker="o", linestyle=DASHES[1], linewidth=1, label=label)
        panels[0].set_ylabel("loss (nats per token)")
        panels[0].legend(fontsize=8)
        panels[1].plot(steps, [point["learning_rate"] for point in curve], color=COLORS[2], linewidth=1.3)
        panels[1].set_ylabel("learning rate")
        panels[1].set_ylim(bottom=0)
        panels[1].set_xlabel(f"step of {report['batch_size'] * report['accumulation']} sequences")
        whole_numbers(panels[1], y=False)


def draw_table(csv: str | Path, out: str | Path, title: str = "") -> None:
    """Draw average accuracy and perplexity over compression from a table's csv, a line per fit and way of choosing
    cuts.

    A model with cuts of one size has a place for each fit, or each cut, instead. Error bars are one standard error;
    dashed grey lines are the unpruned model.
    """
    frame = read_csv(csv)
    if "healing" in frame:  # a healed row stands beside its own, under a name of its own
        frame["fit"] += frame["healing"].map(lambda name: f", {name}", na_action="ignore").fillna("")
    models = list(dict.fromkeys(frame["model"]))
    with figure_in_style(out, 9.5, 3.9 * len(models), title) as figure:
        grid = figure.subplots(len(models), 2, squeeze=False)
        labelled = {}
        for (left, right), model in zip(grid, models, strict=True):
            rows = frame[frame["model"] == model]
            _draw_measure(left, rows, "average", 100)
            _draw_measure(right, rows, "perplexity", 1)
            left.set_title(model)
            left.set_ylabel("average accuracy (%)")
            right.set_ylabel("perplexity (log scale)")
            if rows["perplexity"].notna().any():
                log_scale(right)
            labelled |= {label: handle for handle, label in zip(*left.get_legend_handles_labels(), strict=True)}
        figure.legend(
            labelled.values(), labelled.keys(), loc="outside lower center", ncols=min(len(labelled), 5) or 1, fontsize=8
        )


def _draw_measure(axes: "Axes", rows: "pandas.DataFrame", name: str, scale: float) -> None:
    axes.set_xlabel("parameters removed (%)")
    if rows[name].isna().all():
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_xlim(0, 1)
        return
    baseline = rows[rows["fit"] == BASELINE]
    for _, row in baseline.iterrows():
        axes.axhline(scale * row[name], color="#555555", linestyle=DASHES[1], linewidth=1.2, label="unpruned")
    pruned = rows[rows["fit"] != BASELINE].copy()
    sizes, by = pruned["compression"], _told_apart_by(pruned)
    pruned["name"] = pruned[by].agg(", ".join, axis=1)
    pruned["chosen"] = "" if by == ["cut"] else _chosen(pruned, "cut" not in by)
    names, looks, ways = (list(dict.fromkeys(pruned[key])) for key in ("name", by[-1], "chosen"))
    one_size = _alike(sizes) and len(names) > 1  # then there is no line, only names to compare
    for (one, way), line in pruned.groupby(["name", "chosen"], sort=False):
        ordered = line.sort_values("compression", kind="stable")
        number, place = looks.index(line[by[-1]].iloc[0]), ways.index(way)
        axes.errorbar(
            [names.index(one)] * len(ordered) if one_size else 100 * ordered["compression"],
            scale * ordered[name],
            yerr=scale * ordered[f"{name}_stderr"].fillna(0),
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[(number + number // len(COLORS)) % len(MARKERS)],  # no pair twice among 49 names
            linestyle=DASHES[place % len(DASHES)],
            markerfacecolor=None if place == 0 else "white",
            markersize=5,
            capsize=2.5,
            linewidth=1.4,
            label="_" if one_size and len(ways) == 1 else f"{one}, {way}" if len(ways) > 1 else one,
        )
    if one_size:
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        shares = [f"{100 * share:.1f}" for share in (sizes.min(), sizes.max())]
        axes.set_xlabel(f"{' to '.join(dict.fromkeys(shares))}% of the parameters removed")
    else:
        axes.set_xlim(left=0)


def _alike(sizes: "pandas.Series") -> bool:
    """Return whether models are so near in size that an axis of sizes would heap them up."""
    return bool(sizes.max() - sizes.min() < 0.015)


def _told_apart_by(pruned: "pandas.DataFrame") -> list[str]:
    """Return the columns that name a line or a place: the fit, or the cut of a single fit, or both at several sizes."""
    cuts, fits = pruned["cut"].nunique(), pruned["fit"].nunique()
    if cuts > 1 and fits > 1 and _alike(pruned["compression"]):
        return ["cut", "fit"]
    return ["cut"] if cuts > 1 and fits == 1 else ["fit"]


def _chosen(rows: "pandas.DataFrame", with_metric: bool) -> "pandas.Series":
    """Describe how each row's cut was chosen, by whatever distinguishes the rows: metric, position and calibration."""
    way = rows["metric"].fillna("given").astype(str) if with_metric else rows["metric"].map(lambda _: "")
    if with_metric and rows["position"].nunique() > 1:
        way = way + rows["position"].map(lambda place: f", {PLACES[place]}" if place in PLACES else "")
    if rows["calibration"].nunique() > 1:
        way = way + rows["calibration"].map(lambda name: f" ({name})")
    return way
