"""What a figure or a reference shows, and its table will not have, is found before any job starts."""

import pytest

from replaceme.config.schema import parse
from replaceme.planning.check_local import local_problems

PAPER = {"file": "resources/paper/table3.csv", "rows": ["m/c/n2/ls", None]}
TASKS, IMAGES = {"tasks": {"piqa": {}}}, {"zeroshot": {"photos": {"images": "org/photos"}}}
UNTOLD = "is not measured by table 'main'; set `divergence` of its evaluation"


def problems(evaluation=TASKS, figure=None, reference=None, **table):
    """Return the lines of a table with a reference or a figure; its model lies on the Hub and is not looked at."""
    rows = {"models": ["m"], "calibrations": ["c"], "cuts": ["n2"], "fits": ["ls"], "evaluation": "e"}
    shown = {} if reference is None else {"reference": {**PAPER, "columns": {"ratio_25": reference}}}
    return local_problems(parse({
        "models": {"m": {"source": "org/m"}},
        "calibrations": {"c": {"dataset": "micro"}, "unseen": {"dataset": "micro", "seed": 9}},
        "cuts": {"n2": {"blocks": 2}, "n3": {"blocks": 3}},
        "fits": {"ls": {}},
        "evaluations": {"e": evaluation},
        "tables": {"main": {**rows, **table, **shown}},
        "figures": {} if figure is None else {"f": {"tables": ["main"], **figure}},
    }))  # fmt: skip


@pytest.mark.parametrize("measure", ["kl", "text_perplexity"])
def test_measures_on_a_text_need_one(measure):
    figure = {"kind": "bars", "measures": [measure]}
    assert problems(figure=figure) == [f"figures.f.measures: {measure} {UNTOLD}"]
    assert problems(reference=measure) == [f"tables.main: reference: {measure} {UNTOLD}"]
    assert problems({**TASKS, "divergence": "unseen"}, figure, measure) == []


def test_a_versus_over_what_is_not_measured():
    figure = {"kind": "versus", "measures": ["piqa"], "x": "text_perplexity"}
    assert problems(figure=figure) == [f"figures.f.measures: text_perplexity {UNTOLD}"]


@pytest.mark.parametrize("measure", ["rp", "piqa * 100", "decode_tokens_per_s", "compression * 100", "removed"])
def test_references_to_what_a_table_has(measure):
    assert problems(reference=measure) == []


@pytest.mark.parametrize("measure", ["rpp", "hellaswag * 100", "seconds", "span"])
def test_references_to_what_no_table_or_not_this_one_has(measure):
    [line] = problems(reference=measure)
    name = measure.partition(" ")[0]
    assert line.startswith(f"tables.main: reference: '{name}' is not measured by table 'main'; it has average, rp, ")
    assert line.endswith("removed, compression, piqa") and "kl" not in line.split("; it has ")[1]


def test_speeds_that_are_left_out_are_not_offered():
    [line] = problems(reference="rpp", speed=False)
    assert "_per_s" not in line and "cache_bytes_per_token" in line


@pytest.mark.parametrize("measure", ["cache_bytes_per_token", "text_perplexity"])
def test_encoders_have_no_cache_and_no_text_perplexity(measure):
    assert problems(IMAGES, {"kind": "bars", "measures": ["photos_acc1"]}, "photos_acc1") == []
    [line] = problems(IMAGES, {"kind": "bars", "measures": [measure]})
    assert f"{measure!r} is not measured by table 'main'; it has average" in line


@pytest.mark.parametrize(("lines", "wanted"), [([], "model, cut, fit"), (["fit"], "cut, fit")])
def test_two_rows_in_one_bar(lines, wanted):
    figure = {"kind": "bars", "measures": ["average"]} | ({"lines": lines} if lines else {})
    found = problems(figure=figure, rows=["m/c/n3/ls"])
    assert found == [f"figures.f.lines: m/c/n2/ls and m/c/n3/ls would be one bar; set `lines: [{wanted}]`"]
    assert problems(figure={**figure, "lines": wanted.split(", ")}, rows=["m/c/n3/ls"]) == []
