"""An edit of the config or of the code reruns the jobs that it concerns, and only those (asked with `snakemake -n`).

Edits whose jobs can be told apart are asked at once: their numbers add up.
"""

import dataclasses
import json
import os
import shutil
from collections import Counter

import pytest
import yaml

SVD_LLM, SLICEGPT = (f"replaceme/methods/{name}.py" for name in ("svd_llm", "slicegpt"))
ROW = {"merge": 1, "verify": 1, "evaluate": 1, "speed": 1}
SHOWN = {"table": 1, "figure_table": 1}
TABLE = {**SHOWN, "provenance": 1}
# a cut's statistics, on 2 shards, and its row of least squares
LS = {"gram": 2, "sum": 1, "transform": 1, **ROW}
BOTH = {"transform": 2, "merge": 2, "verify": 2, "evaluate": 2, "speed": 2}
CUT = {"cut": 1, "figure_cut": 1, "gram": 2, "sum": 1, **BOTH}
CALIBRATION = {"tokens": 1, "distances": 1, "figure_distances": 1, "candidates": 1, **CUT}
MODEL = {"model": 1, "evaluate_baseline": 1, "speed_baseline": 1, **CALIBRATION}

# sections, what a table of their own says of them, and the jobs of its rows
ADDED = {
    "model": ({"models": {"more": {"source": "models/tiny/first"}}}, {"models": ["more"]}, MODEL),
    "calibration": (
        {"calibrations": {"less": {"dataset": "plain.jsonl", "samples": 12, "tokens": 8, "shards": 2}}},
        {"calibrations": ["less"]},
        CALIBRATION,
    ),
    "cut": ({"cuts": {"n2": {"blocks": 2, "metric": "angular"}}}, {"cuts": ["n2"]}, CUT),
    "cut-by-hand": (
        {"cuts": {"hand": {"blocks": 2, "start": 1}}},
        {"cuts": ["hand"]},
        {"cut": 1, "gram": 2, "sum": 1, **BOTH},
    ),
    "evaluation": (
        {"evaluations": {"quiz": {"include": "tasks", "tasks": {"pick": {}}}}},
        {"evaluation": "quiz"},
        {"evaluate": 2, "evaluate_baseline": 1},
    ),
}

EDITS = {
    "a fit": (
        {"fits": {"ridge": {"ridge": 0.5}}, "tables": {"main.1": {"fits": ["uidl", "ls", "ridge"]}}},
        {"transform": 1, **ROW, **TABLE},
    ),
    "samples": ({"calibrations": {"plain": {"samples": 20}}}, {**CALIBRATION, **TABLE}),
    "ridge": ({"fits": {"ls": {"ridge": 0.1}}}, {"transform": 1, **ROW, **TABLE}),
    "a cut's metric": ({"cuts": {"n1": {"metric": "cosine"}}}, {**CUT, **TABLE}),
    "a caption": ({"tables": {"main.1": {"caption": '\'Tis 5% {of} all; "quoted"'}}}, SHOWN),
    "no speeds": ({"tables": {"main.1": {"speed": False}}}, TABLE),
    "few-shot, and speed": (
        {"evaluations": {"items": {"tasks": {"pick": {"fewshot": 2}}}}, "speed": {"new_tokens": 3}},
        {"evaluate": 2, "evaluate_baseline": 1, "speed": 2, "speed_baseline": 1, **TABLE},
    ),
    "a heat map of CKA, a figure of lines, and costs": (
        {
            "figures": {
                "heat": {"kind": "heatmap", "tables": ["main.1"], "distances": ["cka"]},
                "lines": {"kind": "lines", "tables": ["main.1"]},
            },
            "cost": {"country": "FRA"},
        },
        {"distances": 1, "figure_distances": 1, "figure_declared": 2, "cost": 1},
    ),
}


def test_additions_to_the_config(completed):
    """Each in a table of its own, which shares with that of the finished run all that is the same."""
    table = completed.config()["tables"]["main.1"]
    for name, (sections, keys, _) in ADDED.items():
        completed.config(**sections, tables={f"{name}.2": {**table, **keys}})
    expected = sum((Counter(jobs) + Counter(SHOWN) for _, _, jobs in ADDED.values()), Counter({"provenance": 1}))
    assert completed.jobs() == expected


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_config(completed, name):
    edits, expected = EDITS[name]
    completed.config(**edits)
    assert completed.jobs() == expected


def test_new_shards_are_not_mixed_with_old_ones(completed):
    """The files of three shards all have new names, so that the first of two is never taken for the first of three."""
    completed.config(calibrations={"plain": {"shards": 3}})
    folder = completed.folder / "results/tiny.v1/plain/n1/gram"
    before = {path.name for path in folder.iterdir()}
    done = completed.snakemake("--dry-run", "--printshellcmds")
    output = done.stdout + done.stderr
    assert completed.job_stats(output) == {**LS, "gram": 3, **TABLE}
    wanted = {f"{shard}-of-3.safetensors" for shard in range(3)}
    assert not wanted & before
    assert all(f"gram/mlp/{name}" in output for name in wanted) and "-of-2" not in output


def test_options_on_the_command_line(completed):
    """`--config` changes what config.yaml says; `--configfile` replaces config.yaml, of which nothing remains."""
    own = completed.folder / "my.yaml"
    shutil.copy2(own, completed.folder / "config.yaml")
    plain = dataclasses.replace(completed, configfile=None)
    assert plain.jobs("--config", "fits={ls: {ridge: 0.1}}") == {"transform": 1, **ROW, **TABLE}
    shown = plain.snakemake("--dry-run", "--config", "device=cpus", "fits={ls: {ridge: 0.1}}")
    assert "found 'cpus'" in shown.stdout + shown.stderr and "ridge" not in shown.stdout + shown.stderr
    config = yaml.safe_load(own.read_text())
    config["tables"]["other"] = {**config["tables"]["main.1"], "fits": ["other"]}
    config["fits"]["other"] = {"ridge": 2.0}
    (completed.folder / "config.yaml").write_text(json.dumps(config))
    assert completed.jobs() == {}


def edited(project, tmp_path, file, old, new):
    """Return the project with a copy of its code in which one file was edited."""
    code = shutil.copytree(project.code, tmp_path / "code")
    path = code / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    return dataclasses.replace(project, code=code)


CODE = {
    "gram": (
        "replaceme/steps/gram.py",
        "    cut = Cut.load(args.cut)",
        "    cut = Cut.of(Cut.load(args.cut).content)",
        {**LS, **TABLE},
    ),
    "merge": (
        "replaceme/placements/mlp.py",
        "transform.double().T @ weight.to(transform.device).double()",
        "(weight.to(transform.device).double().T @ transform.double()).T",
        {"merge": 2, "verify": 2, "evaluate": 2, "speed": 2, **TABLE},
    ),
    "verify": (
        "replaceme/verification/reload_worker.py",
        "return model.eval()",
        "return model.train(False)",
        {"verify": 2, **SHOWN},
    ),
}


@pytest.mark.parametrize("name", CODE)
def test_an_edit_of_the_code(completed, tmp_path, name):
    """Beside a check that is made again, what is missing is planned too."""
    file, old, new, expected = CODE[name]
    code = edited(completed, tmp_path, file, old, new)
    assert code.jobs() == expected
    if name == "verify":
        for fit in ("uidl", "ls"):
            (completed.folder / f"results/tiny.v1/plain/n1/{fit}/evaluation/items.json").unlink()
        assert code.jobs() == {**expected, **TABLE, "evaluate": 2}


def test_an_edit_of_a_method_concerns_its_fits_alone(completed, tmp_path):
    model = "results/tiny.v1/plain/n1/sliced/model/replaceme.json"
    completed.config(fits={"sliced": {"method": "slicegpt"}}, tables={"main.1": {"fits": ["uidl", "ls", "sliced"]}})
    assert completed.jobs() == {"transform": 1, **ROW, **TABLE}
    done = completed.snakemake(model)
    assert done.returncode == 0, done.stderr
    # together: that of a method without a fit reruns nothing
    code = edited(completed, tmp_path / "methods", SVD_LLM, "return max(1, int(", "return max(2, int(")
    code = edited(
        code, tmp_path / "both", SLICEGPT, "range(config.hidden_size, 0, -1)", "range(config.hidden_size, 1, -1)"
    )
    assert code.jobs("--until", "merge") == {"transform": 1, "merge": 1}
    # a checkpoint is read beside the very file that it brings, comments included, so that one is made again; those
    # elsewhere count for none
    brought = "replaceme/models/modeling_replaceme.py"
    code = edited(completed, tmp_path / "brought", brought, "import torch\n", "import torch  # alone\n")
    elsewhere = "import pairwise\n", "import pairwise  # of neighbours\n"
    code = edited(code, tmp_path / "comments", "replaceme/surgery/fold.py", *elsewhere)
    assert code.jobs("--until", "merge") == {"merge": 1}


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_another_tokenizer_or_other_weights(completed, file):
    path = completed.folder / "models/tiny/first" / file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".safetensors" else content + b"\n")
    assert completed.jobs() == {**MODEL, **TABLE}


def test_other_items_of_a_task(completed):
    """By what they say: they are older than the results, as `cp -a` and `tar` may bring them."""
    path = completed.folder / "tasks/pick.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    os.utime(path, (0, 0))
    assert completed.jobs() == {"evaluate": 2, "evaluate_baseline": 1, **TABLE}


def test_files_of_odd_names(completed):
    """Of another name everything that reads it runs again, though Snakemake cannot have it as an input."""
    (completed.folder / "tasks").rename(completed.folder / "ta{sk}s [1] $HOME's")
    completed.config(evaluations={"items": {"include": "ta{sk}s [1] $HOME's"}})
    found = completed.jobs()
    assert found["evaluate"] == 2 and found["evaluate_baseline"] == 1 and "model" not in found
