"""Declared figures: which numbers they show, how they look, and what is told when they cannot be made."""

import json
import re
from dataclasses import replace

import pandas
import pytest
import torch

from replaceme.cli import main
from replaceme.config.figures import FigureConfig, dangling_figures
from replaceme.config.metrics import by_position
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.distances import POSITIONS, save
from replaceme.reports.figures import draw_table
from replaceme.reports.plot_data import Sources, check_published, of_baselines, points
from replaceme.reports.plots import draw, looks

COLUMNS = (
    "model,calibration,cut,fit,removed,span,metric,position,compression,average,average_stderr,perplexity,residual,kl,"
    "kl_stderr"
)
ROWS = """
toy,,,baseline,0,,,,0.0,0.8,0.01,2.0,,,
toy,a,n1,uidl,1,"[3, 4)",cosine,all,0.1,0.6,0.02,8.0,,0.3,0.01
toy,a,n1,ls,1,"[3, 4)",cosine,all,0.1,0.7,0.02,4.0,0.5,0.1,0.02
toy,a,n2,uidl,2,"[2, 4)",cosine,all,0.2,0.4,0.02,90.0,,0.9,0.03
toy,a,n2,ls,2,"[2, 4)",cosine,all,0.2,0.6,0.02,6.0,0.7,0.2,0.04
toy,b,n1,ls,1,"[1, 2)",given,,0.1,0.5,0.02,7.0,0.9,,
"""
COSTS = """model,calibration,cut,fit,seconds,energy_kwh
toy,a,n1,uidl,2.0,0.1
toy,a,n1,ls,3.0,0.4
toy,a,n2,uidl,2.0,
toy,a,n2,ls,4.0,
toy,b,n1,ls,5.0,0.2
"""


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "t.csv").write_text(f"{COLUMNS}{ROWS}")
    (tmp_path / "t.cost.csv").write_text(COSTS)
    places = torch.arange(5, dtype=torch.float64)
    factors = {f"{metric}_{position}": 2 if metric == "l2" else 1 for metric in by_position() for position in POSITIONS}
    matrices = {name: (places[:, None] - places).abs() * factor for name, factor in factors.items()}
    save(tmp_path / "d.safetensors", matrices, {})
    (tmp_path / "published.csv").write_text("method,blocks,acc,time\nUIDL,1,55,1\nUIDL,2,,3\nother,1,50,4\n")
    distances = {"toy/a": tmp_path / "d.safetensors", "toy/b": tmp_path / "d.safetensors"}
    return Sources([tmp_path / "t.csv"], [tmp_path / "t.cost.csv"], distances, {"a": 10, "b": 40})


def figure(kind, **keys):
    return FigureConfig(kind=kind, tables=["t"], **keys)


def shown(frame, *columns):
    return [tuple(row) for row in frame[list(columns)].itertuples(index=False)]


def test_lines_run_over_a_column_of_the_table(sources):
    found = points(figure("lines", measures=["average * 100"], lines=["calibration", "fit"]), sources)
    assert shown(found[found["line"] == "a, ls"], "x", "value", "stderr") == [(1, 70, 2), (2, 60, 2)]
    assert shown(found[found["line"] == "baseline"], "value", "row") == [(80, "toy")]
    assert found["x"].isna().tolist() == [True, *[False] * 5]
    assert found["row"].tolist()[2] == "toy/a/n1/ls"


def test_lines_run_over_a_number_of_the_config(sources):
    found = points(figure("lines", x="calibration.samples", lines=["cut", "fit"]), sources)
    assert shown(found[(found["line"] == "n1, ls") & (found["measure"] == "perplexity")], "x", "value") == [
        (10, 4),
        (40, 7),
    ]


def test_names_that_are_the_same_everywhere_are_left_out_of_labels(sources):
    found = points(figure("lines", lines=["model", "calibration", "fit"], panels="model"), sources)
    assert set(found["line"]) == {"baseline", "a, uidl", "a, ls", "b, ls"} and set(found["panel"]) == {"toy"}


def test_lines_by_what_found_the_fits(tmp_path):
    (tmp_path / "t.csv").write_text(
        f"{COLUMNS},by\ntoy,a,n1,ls,1,,cosine,all,0.1,0.7,0.02,4.0,0.5,0.1,0.02,closed form\n"
        "toy,a,n1,other,1,,cosine,all,0.1,0.7,0.02,4.0,0.5,0.2,0.02,closed form\n"
        "toy,a,n1,adam,1,,cosine,all,0.1,0.6,0.02,5.0,0.5,0.3,0.02,gradient\n"
    )
    frame = points(figure("versus", measures=["average"], lines=["by"]), Sources([tmp_path / "t.csv"]))
    assert shown(frame, "line", "x") == [("closed form", 0.1), ("closed form", 0.2), ("gradient", 0.3)]
    (tmp_path / "t.csv").write_text(f"{COLUMNS}{ROWS}")
    with pytest.raises(ReplaceMeError, match="no column 'by'"):
        points(figure("versus", measures=["average"], lines=["by"]), Sources([tmp_path / "t.csv"]))


def test_a_figure_grows_with_its_legend(tmp_path):
    """So that no legend hides the points."""
    rows = "".join(f"toy,a,n1,fit-{k},1,,cosine,all,0.1,0.7,0.02,4.0,0.5,{k / 10},0.02\n" for k in range(1, 40))
    (tmp_path / "t.csv").write_text(f"{COLUMNS}\n{rows}")
    heights = []
    for lines in (["model"], ["fit"]):
        one = figure("versus", measures=["average"], lines=lines)
        draw(one, points(one, Sources([tmp_path / "t.csv"])), tmp_path / "f.svg")
        heights.append(float(re.search(r'height="([\d.]+)pt"', (tmp_path / "f.svg").read_text())[1]))
    assert heights[0] == 4.0 * 72 and heights[1] > heights[0] + 48


def test_two_rows_at_one_place_are_told(sources):
    with pytest.raises(ReplaceMeError, match=r"two rows of line 'ls' at removed 1; tell them apart under `lines`"):
        points(figure("lines"), sources)


def test_relative_to_the_baseline_or_the_least(sources):
    lines = ["calibration", "cut", "fit"]
    relative = points(figure("bars", measures=["average", "perplexity"], relative_to="baseline", lines=lines), sources)
    assert relative["value"].tolist()[:2] == pytest.approx([0.75, 0.875])
    assert relative["stderr"].tolist()[0] == pytest.approx(0.02 / 0.8) and "baseline" not in set(relative["line"])
    least = points(figure("bars", measures=["seconds", "energy_kwh"], relative_to="least", lines=lines), sources)
    assert shown(least, "measure", "value")[:5] == [("seconds", v) for v in (1.0, 1.5, 1.0, 2.0, 2.5)]
    assert least[least["measure"] == "energy_kwh"]["value"].tolist() == pytest.approx([1, 4, 2])
    with pytest.raises(ReplaceMeError, match="the baseline of toy has no seconds"):
        points(figure("bars", measures=["seconds"], relative_to="baseline", lines=lines), sources)


def test_a_scatter_has_the_distance_across_each_cut(sources):
    keys = {"measures": ["average"], "distances": ["l2", "cosine", "residual"], "lines": ["fit"]}
    found = points(figure("scatter", **keys), sources)
    ls = found[found["line"] == "ls"]
    # of block start - 1 and the last one removed, which lie as many blocks apart as are removed
    assert shown(ls[ls["panel"] == "l2"], "start", "x", "value") == [(3, 2, 0.7), (2, 4, 0.6), (1, 2, 0.5)]
    assert ls[ls["panel"] == "cosine"]["x"].tolist() == [1, 2, 1]
    assert ls[ls["panel"] == "residual"]["x"].tolist() == [0.5, 0.7, 0.9]
    assert "residual" not in set(found[found["line"] == "uidl"]["panel"]) and "baseline" not in set(found["line"])


def test_a_scatter_has_what_the_choice_of_a_cut_foretold(sources, tmp_path):
    """By the run of blocks, whichever cut's candidates it is among; a row that is among none has no point."""
    for size in (1, 2):
        candidates = [{"start": start, "end": start + size, "kl": start / size} for start in (1, 2)]
        Cut([(1, 1 + size)], size, 4, "kl", candidates=candidates).save(tmp_path / f"{size}.json")
    cuts = [("toy/a", tmp_path / "1.json"), ("toy/a", tmp_path / "2.json")]
    keys = {"measures": ["average"], "distances": ["kl"], "candidates": ["one", "two"], "lines": ["fit"]}
    found = points(figure("scatter", **keys), replace(sources, cuts=cuts))
    assert shown(found, "line", "start", "x") == [("uidl", 2, 1.0), ("ls", 2, 1.0)]


def test_measures_over_another_measure_with_both_errors(sources, monkeypatch, tmp_path):
    """A row without it has no place, the baseline is a line; the rank correlation is over all rows that have one."""
    versus = figure("versus", measures=["average * 100"], lines=["fit"])
    found = points(versus, sources)
    columns = ("x", "x_stderr", "value", "stderr")
    ls = found[found["line"] == "ls"].dropna(subset=["x"])
    assert shown(ls, *columns) == [(0.1, 0.02, 70, 2), (0.2, 0.04, 60, 2)]
    assert found[found["line"] == "baseline"]["x"].isna().all()
    other = points(figure("versus", x="perplexity", measures=["kl"], lines=["calibration"]), sources)
    assert other["x"].dropna().tolist() == [8, 4, 90, 6] and other["value"].tolist() == [0.3, 0.1, 0.9, 0.2]
    written = []
    monkeypatch.setattr("matplotlib.axes.Axes.text", lambda self, x, y, words, **more: written.append(words))
    draw(versus, found, tmp_path / "f.svg")
    assert written == ["rank correlation -0.95 (n = 4)"], "ties share their rank"


def test_healed_rows_have_labels_of_their_own_and_no_cost(sources):
    table = sources.tables[0]
    lines = table.read_text().splitlines()
    table.write_text("\n".join([f"{lines[0]},healing", *lines[1:], f"{lines[3]},few"]))
    found = points(figure("versus", measures=["perplexity", "seconds"], lines=["fit"]), sources)
    assert shown(found[found["line"] == "ls, few"], "measure", "value", "row") == [("perplexity", 4, "toy/a/n1/ls/few")]
    assert len(found[found["line"] == "ls"]) == 6


def test_a_heat_map_is_the_matrix(sources):
    found = points(figure("heatmap", distances=["l2"]), sources)
    assert len(found) == 2 * 25 and set(found["panel"]) == {"toy/a", "toy/b"}
    assert found[(found["i"] == 1) & (found["j"] == 4)]["value"].tolist() == [6, 6]


def published(sources, **keys):
    return {"file": str(sources.tables[0].parent / "published.csv"), "label": "method", **keys}


def test_published_values_are_beside_the_measured(sources):
    one = figure(
        "lines",
        measures=["average * 100"],
        lines=["calibration", "fit"],
        published=published(sources, x="blocks", columns={"average * 100": "acc * 2"}, same_as={"UIDL": "a, uidl"}),
    )
    check_published(one)
    found = points(one, sources)
    assert shown(found[found["published"]], "line", "x", "value") == [("UIDL", 1, 110), ("other", 1, 100)]
    styles = looks(one, found)
    assert list(styles) == [("a, uidl", False), ("UIDL", True), ("a, ls", False), ("b, ls", False), ("other", True)]
    assert styles["UIDL", True].color == styles["a, uidl", False].color
    assert len({look.color for look in styles.values()}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "name"}, "no column 'name'; it has method"),
        ({"same_as": {"ours": "ls"}}, "no row is labelled 'ours'"),
    ],
)
def test_published_files_that_lack_something(sources, change, message):
    values = published(sources, columns={"average": "acc"}) | change
    with pytest.raises(ReplaceMeError, match=message):
        check_published(figure("bars", measures=["average"], published=values))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "lines", "x": "calibration.dataset"}, "is no number of a row"),
        ({"kind": "lines", "x": "removal"}, "is no number of a row"),
        ({"kind": "bars", "x": "removed"}, "x says nothing about bars"),
        ({"kind": "heatmap", "measures": ["average"]}, "measures says nothing about heatmap"),
        ({"kind": "heatmap", "distances": ["residual"]}, "the residual is of a row"),
        ({"kind": "scatter", "distances": ["kl"]}, "kl was measured of candidates; name the cuts"),
        ({"kind": "scatter", "distances": ["cka"], "position": "last"}, "cka averages over all tokens"),
        (
            {"kind": "bars", "published": {"file": "f", "label": "l", "columns": {"x": "y"}}},
            "'x' is not among measures",
        ),
        (
            {"kind": "lines", "published": {"file": "f", "label": "l", "columns": {"perplexity": "y"}}},
            "published.x says where",
        ),
    ],
)
def test_keys_that_do_not_belong_together(keys, message):
    with pytest.raises(ValueError, match=message):
        FigureConfig(tables=["t"], **keys)


def test_dangling_tables_and_taken_names():
    raw = {"tables": {"t": {}, "u": {}}, "figures": {"f": {"tables": ["t", "v"]}, "u": {"tables": ["u"]}}}
    first, second = dangling_figures(raw)
    assert first == "figures.f.tables: 'v' is not defined under tables; defined: t, u"
    assert second == "figures.u: a table has this name; choose another"
    measures = ["average", "decode_tokens_per_s * 2"]
    raw = {"tables": {"t": {"speed": False}, "u": {}}, "figures": {"f": {"tables": ["t", "u"], "measures": measures}}}
    [line] = dangling_figures(raw)
    assert line.startswith("figures.f.measures: decode_tokens_per_s is not measured for table 't'; set its `speed")
    raw = {"tables": {"t": {"by": True}, "u": {}}, "figures": {"f": {"tables": ["t", "u"], "lines": ["by"]}}}
    assert dangling_figures(raw) == ["figures.f.lines: table 'u' does not say `by`; set its `by: true`"]
    assert dangling_figures({"figures": {"f": 3}}) == [] and dangling_figures({"figures": None}) == []


KINDS = {
    "lines": {"lines": ["calibration", "fit"], "title": "Lines", "caption": "What to see."},
    "scatter": {"distances": ["l2", "cosine"], "lines": ["fit"]},
    "versus": {"measures": ["average", "perplexity"], "lines": ["fit"]},
    "bars": {"measures": ["seconds", "average"], "lines": ["calibration", "cut", "fit"]},
    "heatmap": {"distances": ["cosine", "l2"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_draws_and_writes_the_numbers(sources, kind, tmp_path):
    text = json.dumps({"kind": kind, "tables": ["t"], **KINDS[kind]})
    given = [f"--distances={name}={path}" for name, path in sources.distances.items()]
    given += [f"--table={sources.tables[0]}", f"--cost={sources.costs[0]}"]
    for copy in ("one.v1", "two") if kind == "bars" else ("one.v1",):
        assert main(["figure", "declared", text, *given, "--out", str(tmp_path / f"{copy}.svg")]) == 0
    svg = (tmp_path / "one.v1.svg").read_bytes()
    assert svg.startswith(b"<?xml") and (kind != "bars" or svg == (tmp_path / "two.svg").read_bytes())
    assert (b"What to see." in svg) == (kind == "lines")
    frame = pandas.read_csv(tmp_path / "one.v1.csv")
    assert len(frame) == len(points(figure(kind, **KINDS[kind]), sources))


def test_missing_files_and_measures(sources, tmp_path, capsys):
    with pytest.raises(ReplaceMeError, match="no column 'speed'; it has model"):
        points(figure("lines", measures=["speed"]), sources)
    with pytest.raises(ReplaceMeError, match=r"gone\.csv: no such file"):
        points(figure("lines"), Sources([tmp_path / "gone.csv"]))
    assert main(["figure", "declared", "{", "--out", str(tmp_path / "x.svg")]) == 1
    assert "FILE: not valid JSON" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["007", "null", "None", "nan", "NA", "1e5", "true", "inf"])
def test_names_that_look_like_something_else_stay_names(sources, name):
    table = sources.tables[0]
    table.write_text(table.read_text().replace("ls", name).replace("n1", "1").replace("n2", "2").replace(",a,", ",01,"))
    found = points(figure("lines", lines=["fit", "calibration"]), Sources([table]))
    assert set(found["line"]) == {"baseline", "uidl, 01", f"{name}, 01", f"{name}, b"}
    assert f"toy/01/1/{name}" in set(found["row"])


def test_the_figure_of_a_table_tells_numbers_from_names(sources, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "replaceme.reports.figures._draw_measure", lambda axes, rows, name, scale: drawn.update({name: rows})
    )
    table = sources.tables[0]
    table.write_text(table.read_text().replace("ls", "007").replace("toy", "1"))
    draw_table(table, tmp_path / "t.svg")
    assert set(drawn["average"]["fit"]) == {"baseline", "uidl", "007"}


def test_a_published_line_called_baseline_is_drawn_as_a_line(sources, tmp_path):
    (tmp_path / "published.csv").write_text("method,blocks,acc\nbaseline,1,55\nbaseline,2,50\n")
    published = {"file": str(tmp_path / "published.csv"), "label": "method", "x": "blocks"}
    lines = figure(
        "lines",
        measures=["average"],
        lines=["calibration", "fit"],
        published={**published, "columns": {"average": "acc"}},
    )
    found = points(lines, sources)
    assert of_baselines(found).sum() == 1 and ("baseline", True) in looks(lines, found)
    draw(lines, found, tmp_path / "f.svg")
