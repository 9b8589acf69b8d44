"""Figures: complete labels, what they show, the same bytes twice, clear errors."""

import json
import math
import re

import pytest
import torch

from replaceme.config.metrics import by_position
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.distances import POSITIONS, save
from replaceme.reports import figures

CSV = """model,calibration,cut,fit,removed,metric,position,compression,average,average_stderr,perplexity,\
perplexity_stderr
toy,,,baseline,0,,,0.0,0.9,0.01,1.5,0.01
toy,cal,n2,uidl,2,cosine,all,0.1,0.7,0.01,5.0,0.1
toy,cal,n4,uidl,4,cosine,all,0.2,0.6,0.01,9.0,0.1
toy,cal,n2,ls,2,cosine,all,0.1,0.8,0.01,2.0,0.1
toy,cal,n4,ls,4,cosine,all,0.2,0.7,0.01,3.0,
toy,cal,n4-after,ls,4,cosine_after_fit,all,0.2,0.75,0.01,2.5,0.1
"""


@pytest.fixture
def sources(tmp_path):
    places = torch.arange(6, dtype=torch.float64)
    matrix = (places[:, None] - places).abs() / 10
    names = [f"{m}_{p}" for m in by_position() for p in POSITIONS]
    save(tmp_path / "distances.safetensors", {name: matrix.clone() for name in names}, {})
    candidates = [
        {"start": s, "end": s + 2, "residual": 0.5 + 0.1 * math.sin(s), "cosine": 0.1 * s, "cosine_after_fit": 0.01 * s}
        for s in range(1, 5)
    ]
    cut = {"groups": [[1, 3]], "blocks": 2, "num_blocks": 6, "position": "all"}
    (tmp_path / "cut.json").write_text(json.dumps(cut | {"metric": "cosine_after_fit", "candidates": candidates}))
    rounds = [
        {"start": s, "end": s + 1, "perplexity": 3.0 + number + (s - 2) ** 2, "round": number}
        for number, starts in enumerate(([1, 2, 3, 4, 5], [1, 3, 4, 5]))
        for s in starts
    ]
    several = {"groups": [[1, 3]], "parts": [[1, 2], [2, 3]], "search": "iterative", "adjacency": "merge"}
    one_by_one = cut | several | {"metric": "perplexity", "candidates": rounds}
    (tmp_path / "rounds.json").write_text(json.dumps(one_by_one))
    (tmp_path / "given.json").write_text(json.dumps(cut | {"metric": "given", "position": None, "candidates": []}))
    (tmp_path / "table.csv").write_text(CSV)
    curve = [{"step": 3 * k + 3, "loss": 2 - 0.1 * k, "learning_rate": 0.1 - 0.01 * k} for k in range(9)]
    report = {"curve": curve, "steps": 27, "batch_size": 2, "accumulation": 4, "loss": {"before": 1.9, "after": 1.25}}
    (tmp_path / "healing.json").write_text(json.dumps(report))
    return tmp_path


DRAW = {
    "distances.safetensors": figures.draw_distances,
    "cut.json": figures.draw_cut,
    "given.json": figures.draw_cut,
    "healing.json": figures.draw_healing,
    "rounds.json": figures.draw_cut,
    "table.csv": figures.draw_table,
}


@pytest.fixture
def drawn(monkeypatch):
    """The matplotlib figures made by the calls of a test."""
    import matplotlib.figure

    made = []
    init = matplotlib.figure.Figure.__init__

    def remember(self, *arguments, **options):
        init(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(matplotlib.figure.Figure, "__init__", remember)
    return made


# what might differ in a .png lies in no kind of figure
@pytest.mark.parametrize(("name", "kind"), [*((name, "svg") for name in DRAW), ("table.csv", "png")])
def test_same_bytes_twice(sources, name, kind):
    for copy in ("a", "b"):
        DRAW[name](sources / name, sources / f"{copy}.{kind}", title="A title")
    first = (sources / f"a.{kind}").read_bytes()
    assert first == (sources / f"b.{kind}").read_bytes()
    assert first.startswith(b"\x89PNG" if kind == "png" else b"<?xml")
    assert not re.search(rb"<dc:date>", first)


@pytest.mark.parametrize("name", DRAW)
def test_every_axis_is_labelled(sources, name, drawn):
    DRAW[name](sources / name, sources / "out.svg")
    axes = [one for one in drawn[0].axes if one.get_label() != "<colorbar>"]
    bars = [one for one in drawn[0].axes if one.get_label() == "<colorbar>"]
    for one in axes:
        shared = one.get_shared_x_axes().get_siblings(one)
        assert any(other.get_xlabel() for other in shared)
        assert one.get_ylabel() or not len(one.get_yticks())
    assert all(bar.get_ylabel() for bar in bars) and len(bars) == (4 if name.startswith("distances") else 0)


def test_heat_maps_show_the_matrices(sources, drawn):
    figures.draw_distances(sources / "distances.safetensors", sources / "out.png", "Toy")
    images = [one.images[0] for one in drawn[0].axes if one.images]
    assert [image.axes.get_title() for image in images[:2]] == ["cosine, all tokens", "cosine, last token"]
    assert images[0].get_array()[0, 5] == 0.5 and drawn[0].get_suptitle() == "Toy"


def test_choice_is_marked(sources, drawn):
    figures.draw_cut(sources / "cut.json", sources / "out.png")
    top = drawn[0].axes[0]
    star = next(line for line in top.lines if line.get_marker() == "*")
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([1], [0.01])
    assert "[1, 3) of 6" in top.get_title()
    assert list(top.lines[0].get_ydata()) == [0.01, 0.02, 0.03, 0.04]


def test_a_healing_shows_its_losses(sources, drawn):
    figures.draw_healing(sources / "healing.json", sources / "out.png")
    top, below = drawn[0].axes
    training, held_out = top.lines
    assert list(training.get_xdata())[-1] == 27 and max(training.get_ydata()) == 2
    assert (list(held_out.get_xdata()), list(held_out.get_ydata())) == ([0, 27], [1.9, 1.25])
    assert below.get_xlabel() == "step of 8 sequences"


def test_a_healed_row_has_a_place_of_its_own(sources, drawn):
    header, *rows = CSV.splitlines()
    lines = [f"{header},healing", f"{rows[0]},", f"{rows[1]},", f"{rows[1]},lora", f"{rows[1]},full"]
    (sources / "table.csv").write_text("\n".join(lines) + "\n")
    figures.draw_table(sources / "table.csv", sources / "out.png")
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["uidl", "uidl, lora", "uidl, full"]


def test_rounds_have_a_line_and_a_choice_each(sources, drawn):
    figures.draw_cut(sources / "rounds.json", sources / "out.png")
    lines = drawn[0].axes[0].lines
    stars = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines if line.get_marker() == "*"]
    assert stars == [(2, 3.0), (1, 5.0)]
    assert [list(line.get_xdata()) for line in lines if line.get_marker() != "*"] == [[1, 2, 3, 4, 5], [1, 3, 4, 5]]


def test_table_has_a_line_per_fit_and_choice(sources, drawn):
    figures.draw_table(sources / "table.csv", sources / "out.png")
    left, right = drawn[0].axes
    labels = left.get_legend_handles_labels()[1]
    assert labels == ["unpruned", "uidl, cosine", "ls, cosine", "ls, cosine_after_fit"]
    assert right.get_yscale() == "log"
    data = [tuple(container.lines[0].get_ydata()) for container in right.containers]
    assert data == [(5.0, 9.0), (2.0, 3.0), (2.5,)]
    assert list(left.containers[0].lines[0].get_xdata()) == [10.0, 20.0]


def test_a_table_of_one_cut_has_a_place_per_fit(sources, drawn):
    names = [f"fit{n}" for n in range(15)]
    lines = [f"toy,cal,n2,{name},2,cosine,all,0.1,0.{n + 10},0.01,5.0,0.1" for n, name in enumerate(names)]
    (sources / "table.csv").write_text("\n".join([*CSV.splitlines()[:2], *lines]) + "\n")
    figures.draw_table(sources / "table.csv", sources / "out.png")
    left, _ = drawn[0].axes
    assert [label.get_text() for label in left.get_xticklabels()] == names
    points = [container.lines[0] for container in left.containers]
    assert [list(point.get_xdata()) for point in points] == [[n] for n in range(15)]
    assert len({(point.get_color(), point.get_marker()) for point in points}) == 15
    assert "10.0% of the parameters removed" in left.get_xlabel()


def test_what_was_not_measured_is_said(sources, drawn):
    lines = [",".join([*line.split(",")[:-2], "", ""]) for line in CSV.splitlines()[1:]]
    (sources / "table.csv").write_text("\n".join([CSV.splitlines()[0], *lines]))
    figures.draw_table(sources / "table.csv", sources / "out.svg")
    left, right = drawn[0].axes
    assert [text.get_text() for text in right.texts] == ["not measured"] and not left.texts


def test_other_endings_and_missing_files(sources):
    with pytest.raises(ReplaceMeError, match=r"as \.svg or \.png"):
        figures.draw_cut(sources / "cut.json", sources / "out.pdf")
    for draw in (figures.draw_table, figures.draw_cut, figures.draw_distances):
        with pytest.raises(ReplaceMeError, match="no such file"):
            draw(sources / "none.csv", sources / "out.svg")
    assert not (sources / "out.svg").exists()
