"""Rows come before measurements where the disk has room for all of a run, else as late as what makes models."""

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from workflow.conftest import copy_tree

from replaceme.activations.row_collector import RowCollector
from replaceme.config.placement import Regression
from replaceme.config.result_paths import Names
from replaceme.config.schema import parse
from replaceme.planning.job_work import stored_rows
from replaceme.planning.outline import Outline
from replaceme.workflow import rows_first
from replaceme.workflow.rows_first import RowsFirst

OUTLINE = Outline("m", {"intermediate_size": 40}, 6, 16, 1e6, [1000] * 6, 2e6)
NAMES = {"model": "m", "calibration": "c", "cut": "n2"}
FITS = {"uidl": {"transform": "identity"}, "cosine": {"objective": "cosine"}}


@pytest.fixture
def config():
    return parse({
        "models": {"m": {"source": "resources/micro"}},
        "calibrations": {"c": {"dataset": "micro", "samples": 8, "tokens": 100}},
        "cuts": {"n2": {"blocks": 2}, "two": {"blocks": 2, "groups": 2, "adjacency": "separate"}},
        "fits": {**FITS, "down": {"objective": "cosine", "placement": "down_proj"}, "svd": {"method": "svd_llm"}},
        "tables": {"t": {"models": ["m"], "calibrations": ["c"], "cuts": ["n2"], "fits": [*FITS], "evaluation": None}},
    }, "config")  # fmt: skip


@pytest.mark.parametrize(("changed", "bytes_"), [
    ({}, 800 * (16 + 16) * 2),
    ({"exact": "-exact"}, 800 * (16 + 2 * 16) * 2),
    ({"fit_tokens": "50"}, 50 * (16 + 16) * 2),
    ({"fit_tokens": "5000"}, 800 * (16 + 16) * 2),
    ({"kind": "down_proj"}, 800 * (40 + 16) * 2),
    ({"cut": "two"}, 2 * 800 * (16 + 16) * 2),
])  # fmt: skip
def test_bytes_of_rows(config, changed, bytes_):
    names = {**NAMES, "kind": "mlp", "fit_tokens": "all", "exact": "", **changed}
    assert stored_rows(config, names, OUTLINE) == bytes_


def test_bytes_of_rows_are_those_that_are_stored(llama, blocks_of, config):
    model, family = blocks_of(llama, "float32")
    sizes = model.config
    outline = Outline("m", sizes.to_dict(), sizes.num_hidden_layers, sizes.hidden_size, 1e6, [], 2e6)
    for kind, place in (("mlp", "mlp"), ("down_proj", "down_proj")):
        collector = RowCollector((2, 4), 800, None, True, Regression(placement=place))
        names = {**NAMES, "kind": kind, "fit_tokens": "all", "exact": "-exact"}
        assert stored_rows(config, names, outline) == collector.bytes(model, family)


@pytest.mark.parametrize(("free", "wanted"), [(200, 3), (199, 0), (0, 0)])
def test_all_rows_of_a_run_have_to_fit_half_of_what_is_free(config, monkeypatch, tmp_path, free, wanted):
    updated = []
    rule = SimpleNamespace(name="rows")
    jobs = [SimpleNamespace(rule=rule, wildcards=40), SimpleNamespace(rule=rule, wildcards=60)]
    jobs.append(SimpleNamespace(rule=SimpleNamespace(name="gram"), wildcards=10**9))
    dag = SimpleNamespace(needrun_jobs=lambda: jobs, update_priority=lambda: updated.append(1))
    requests = SimpleNamespace(stored_rows=lambda bytes_: bytes_, fits=SimpleNamespace(config=config))
    first = RowsFirst(requests, urgent=3)
    names = [Names(NAMES, fit=fit) for fit in (*FITS, "svd")]
    assert [first.of_rows(names[0]), *map(first.of_fit, names)] == [0, 0, 0, 0], "until it is decided"
    monkeypatch.setattr(rows_first, "free_space", lambda folder: free)
    assert first.decide(dag, tmp_path) is (wanted > 0)
    assert [first.of_rows(names[0]), *map(first.of_fit, names)] == [wanted, 0, wanted, 0]
    assert len(updated) == (wanted > 0)


@pytest.mark.parametrize("room", [True, False])
def test_the_order_of_a_run(project, tmp_path, room):
    """On one core, where one job follows another: the check of a model that is there, or rows."""
    if not room:
        code = copy_tree(project.code, tmp_path / "code")
        file = code / "replaceme/activations/rows.py"
        assert "\nDISK_SHARE = 0.5 " in file.read_text()
        file.write_text(file.read_text().replace("\nDISK_SHARE = 0.5 ", "\nDISK_SHARE = 0.00000 "))
        project = replace(project, code=code)
    project.config(fits=FITS)
    of_cut = "results/tiny.v1/plain/n1"
    for targets in (
        [f"{of_cut}/uidl/model/replaceme.json"],
        [f"{of_cut}/uidl/verify.json", f"{of_cut}/cosine/fit.json"],
    ):
        done = project.snakemake(*targets, cores="1")
        assert done.returncode == 0, done.stderr
    order = re.findall(r"^Job \d+: (rows|verify|fit cosine)\b", done.stdout + done.stderr, re.MULTILINE)
    assert order == (["rows", "fit cosine", "verify"] if room else ["verify", "rows", "fit cosine"])
