"""Other kinds of workflows: other fits, groups, calibrations made of others, healings, baselines."""

import json
import sys
from pathlib import Path

import pytest
from tiny_clip import write_clip, write_labelled

RESULTS = "results/tiny.v1"
FIT = f"{RESULTS}/plain/n1"


def served(project, step):
    """How many jobs of a step have found their results made by the pass of another one."""
    logs = (path.read_text() for path in (project.folder / "results/logs").rglob("*.log"))
    return sum(f"{step}: made by the pass of another job" in text for text in logs)


WRONG_VLLM = """
from types import SimpleNamespace as Of
__version__ = "0"
def SamplingParams(**given): return Of(**given)
class LLM:
    def __init__(self, model, **options): open(model + "/config.json")
    def generate(self, prompts, params):
        given = [one["prompt_token_ids"] for one in prompts]
        likelihoods = [[None, *({token: Of(logprob=-1.0)} for token in one[1:])] for one in given]
        return [Of(prompt_logprobs=one, outputs=[Of(token_ids=[1] * 8)]) for one in likelihoods]
"""


def python_with(vllm, folder):
    """Another interpreter, which has a module of this name, and a torch that is imported at once."""
    (folder / "vllm.py").write_text(vllm)
    (folder / "torch.py").write_text("class cuda: is_available = bool")
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_a_healing_added_to_a_finished_run(completed, tmp_path):
    """Each fit comes healed too, with its divergence and the outcome of another program, one that fails, and nothing
    but that is run; another learning rate trains again, and that alone.
    """
    table = completed.config()["tables"]["main.1"]
    healing = {"train": "full", "text": "plain", "steps": 3, "learning_rate": 0.01, "held_out": 4}
    unseen = {"dataset": "tasks/last_word.jsonl", "samples": 10, "tokens": 16}
    completed.config(calibrations={"unseen": unseen}, evaluations={"items": {"divergence": "unseen"}})
    completed.config(healings={"few": healing}, tables={"main.1": {**table, "fits": ["ls"], "healings": ["few"]}})
    completed.config(tables={"main.1": {"exports": ["vllm"]}})
    missing = completed.snakemake("--dry-run", VLLM_PYTHON=str(tmp_path / "none"))
    assert "tables.main.1.exports: vllm: not installed" in missing.stdout + missing.stderr
    wrong = python_with(WRONG_VLLM, tmp_path)
    done = completed.snakemake(VLLM_PYTHON=wrong)
    assert done.returncode == 0, done.stderr
    new = {
        "heal": 1,
        "divergence_healed": 1,
        "evaluate_healed": 1,
        "export": 1,
        "export_healed": 1,
        "speed_healed": 1,
        "table": 1,
        "figure_table": 1,
        "figure_healing": 1,
        "provenance": 1,
    }
    assert completed.job_stats(done.stdout + done.stderr) == {**new, "tokens": 1, "divergence": 1}
    table = completed.table()
    assert [(row["fit"], row["healing"]) for row in table] == [("baseline", ""), ("ls", ""), ("ls", "few")]
    assert [row["export_vllm"] for row in table] == ["", "failed", "failed"]
    assert [bool(row["kl"]) for row in table] == [False, True, True] and table[1]["kl"] != table[2]["kl"]
    assert (completed.folder / FIT / "ls/healed/few/healing.svg").is_file() and not completed.attempts.exists()
    completed.config(healings={"few": {"learning_rate": 0.02}})
    del new["export"]
    assert completed.jobs(VLLM_PYTHON=wrong) == new


def test_other_fits_of_the_same_cut(completed):
    """They read the shards that the Gram jobs made; only the cosine fits need rows, which are gone afterwards."""
    fits = {
        "auto": {"ridge": "auto", "towards": "identity"},
        "thin": {"transform": "low_rank", "rank": 2},
        "cosine": {"objective": "cosine", "fit_tokens": 200},
        "exact": {"objective": "cosine_exact", "solver": "lbfgs", "fit_tokens": 200},
    }
    table = {**completed.config()["tables"]["main.1"], "fits": list(fits)}
    completed.config(fits=fits, tables={"main.1": table})
    done = completed.snakemake(*(f"{FIT}/{fit}/fit.json" for fit in fits))
    assert done.returncode == 0, done.stderr
    assert completed.job_stats(done.stdout + done.stderr) == {"rows": 2, "transform": 4}
    assert served(completed, "rows") == 1, "both kinds of rows by one pass"
    for rows in ("rows/200", "rows/200-exact"):
        assert not (completed.folder / FIT / rows).exists()
    assert [path.name for path in (completed.folder / FIT / "exact").glob(".*")] == [], "no state is left"
    assert json.loads((completed.folder / FIT / "cosine/fit.json").read_text())["solver"] == "irls"
    report = json.loads((completed.folder / FIT / "auto/fit.json").read_text())
    assert {point["ridge_relative"] for point in report["curve"]} >= {report["ridge_relative"]}
    assert all(len(point["by_shard"]) == 2 for point in report["curve"])
    assert json.loads((completed.folder / FIT / "thin/fit.json").read_text())["rank"] == 2


def test_groups_and_placements(completed):
    """Two groups, chosen from candidates of their size; the recycled neurons have a pass and a job of their own."""
    fits = {
        "recycled": {"placement": "down_proj", "recycle": 0.25, "ridge_relative": 0.01},
        "block": {"placement": "block"},
        "sequential": {"estimation": "sequential"},
        "recycled-cosine": {"objective": "cosine", "placement": "down_proj", "recycle": 0.25, "ridge_relative": 0.01},
    }
    two = {"blocks": 2, "groups": 2, "adjacency": "separate", "metric": "kl"}
    table = {**completed.config()["tables"]["main.1"], "fits": list(fits), "cuts": ["two"]}
    completed.config(fits=fits, cuts={"two": two}, tables={"main.1": table})
    folder = f"{Path(FIT).parent}/two"
    done = completed.snakemake(*(f"{folder}/{fit}/model/replaceme.json" for fit in fits))
    assert done.returncode == 0, done.stderr
    stats = completed.job_stats(done.stdout + done.stderr)
    # sums of three kinds, block, down_proj with recycled neurons and their inputs, over two shards each
    assert stats == {
        "candidates": 1,
        "cut": 1,
        "gram": 6,
        "sum": 3,
        "recycle": 1,
        "rows": 1,
        "transform": 4,
        "merge": 4,
    }
    assert served(completed, "gram") == 2, "two kinds by one pass of each shard, the third once neurons are chosen"
    assert not (completed.folder / "results/.planned").exists()
    cut = json.loads((completed.folder / folder / "cut.json").read_text())
    assert cut["groups"] == [[1, 2], [3, 4]] and {len(one) for one in cut["parts"]} == {2}
    for fit in fits:
        model = completed.folder / folder / fit / "model"
        assert json.loads((model / "config.json").read_text())["num_hidden_layers"] == 2
        assert len(json.loads((completed.folder / folder / fit / "fit.json").read_text())["by_group"]) == 2


def test_calibrations_that_are_not_read_from_a_source_alone(project):
    """The model's own answers to a text with braces in its template, mixed with another calibration; as many samples
    as are enough.
    """
    small = {"samples": 8, "tokens": 16}
    lines = (json.dumps({"text": " ".join(f"w{(k * j + j) % 40}" for j in range(1, 9))}) for k in range(1, 81))
    (project.folder / "long.jsonl").write_text("\n".join(lines))
    project.config(
        calibrations={
            "asked": {"dataset": "plain.jsonl", "template": "{text} {{it's}}", **small},
            "own": {"prompts": "asked", "generation": {"new_tokens": 4}, "samples": 6, "tokens": 32},
            "mixed": {"mix": {"plain": 2, "own": 1}, "samples": 9},
            "enough": {"dataset": "long.jsonl", "samples": "auto", "most": 75, "tolerance": 0.9, "tokens": 16},
        },
        tables={"main.1": {"calibrations": ["mixed", "enough"]}},
    )
    done = project.snakemake("results/tiny.v1/mixed/tokens.safetensors", "results/tiny.v1/enough/enough.svg")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((project.folder / "results/tiny.v1/enough/enough.json").read_text())
    assert report["samples"] == 64 and report["held_out"]["samples"] == 4
    answers = (project.folder / "results/tiny.v1/own/generated.jsonl").read_text().splitlines()
    assert len(answers) == 6 and all("{it's}" in json.loads(line)["text"] for line in answers)
    assert not project.attempts.exists()
    for change, jobs in (
        ({"asked": {"samples": 9}}, {}),  # its own number, of which the answers take theirs
        ({"mixed": {"mix": {"plain": 1}}}, {"mix": 1}),
    ):
        project.config(calibrations=change)
        assert project.jobs("--until", "mix") == jobs


def test_preflight(project):
    """It says what is missing, in the terminal and in a log; braces and quotes of the config reach it."""
    table = {"caption": 'it\'s {that} "table" of 5%', "models": ["tiny.v1", "hub"]}
    project.config(models={"hub": {"source": "owner/name"}}, tables={"main.1": table})
    failed = project.snakemake("preflight", HF_HUB_OFFLINE="1")
    line = "replaceme: error: huggingface.co: no answer ("
    assert failed.returncode != 0 and line in failed.stdout, failed.stdout + failed.stderr
    log = (project.folder / "results/logs/preflight.log").read_text()
    assert log.splitlines() == [one for one in log.splitlines() if line in one and one.endswith("checked: owner/name")]
    project.config(tables={"main.1": {"models": ["tiny.v1"]}})
    done = project.snakemake("preflight")
    assert done.returncode == 0 and "preflight: fine (2 models, 1 tables)" in done.stdout, done.stdout + done.stderr
    assert not project.attempts.exists()


def test_baselines(project):
    """Blocks one by one, each measured without those before; both maps of the residual stream read the same sums."""
    fits = {
        "prune-comp": {"transform": "magnitude", "placement": "upstream"},
        "linear-patch": {"transform": "hadamard_magnitude", "placement": "block"},
        "laco": {"transform": "collapse"},
    }
    sleb = {"blocks": 2, "metric": "perplexity", "search": "iterative", "samples": 4, "keep_last": 1}
    merging = {"blocks": 2, "metric": "output", "search": "merging", "merge_blocks": 2, "interval": 1, "samples": 4}
    table = {**project.config()["tables"]["main.1"], "fits": list(fits), "cuts": ["sleb"]}
    table |= {"rows": ["tiny.v1/plain/merging/laco"], "speed": False}
    project.config(fits=fits, cuts={"sleb": sleb, "merging": merging}, tables={"main.1": table})
    planned = project.jobs()
    assert planned["evaluate"] == len(fits) + 1 and not planned.keys() & {"speed", "speed_baseline"}
    folder, beside = f"{Path(FIT).parent}/sleb", f"{Path(FIT).parent}/merging"
    targets = [f"{folder}/{fit}/model/replaceme.json" for fit in fits]
    more = [f"{folder}/cut.svg", f"{beside}/cut.svg", f"{beside}/laco/model/replaceme.json"]
    done = project.snakemake(*targets, *more)
    assert done.returncode == 0, done.stderr
    stats = project.job_stats(done.stdout + done.stderr)
    expected = {
        "model": 1,
        "tokens": 1,
        "candidates": 2,
        "cut": 2,
        "figure_cut": 2,
        "gram": 2,
        "sum": 1,
        "transform": 4,
        "merge": 4,
    }
    assert stats == expected
    cut = json.loads((project.folder / beside / "cut.json").read_text())
    report = json.loads((project.folder / beside / "laco/fit.json").read_text())
    assert cut["search"] == "merging" and [sum(one) for one in cut["coefficients"]] == [1] * len(cut["groups"])
    found = report["by_group"] if len(cut["groups"]) > 1 else [report]
    assert [one["coefficients"] for one in found] == cut["coefficients"]
    cut = json.loads((project.folder / folder / "cut.json").read_text())
    assert (cut["groups"], cut["search"]) == ([[1, 3]], "iterative")
    placements = {fit: json.loads((project.folder / file).read_text())["placement"] for fit, file in
                  zip(fits, targets, strict=True)}  # fmt: skip
    assert placements == {"prune-comp": "upstream", "linear-patch": "block", "laco": "collapse"}


def test_encoders_of_images_and_texts(project):
    """A table of them is planned like any other; a labelled picture that changes is measured again, and that alone."""
    pytest.importorskip("clip_benchmark")
    write_clip(project.folder / "clip")
    write_labelled(project.folder / "colours", "classification", "folders")
    names = {"models": ["clip"], "calibrations": ["pictures"], "cuts": ["two"], "fits": ["uidl", "ls"]}
    project.config(
        models={"clip": {"source": "clip"}},
        calibrations={"pictures": {"images": "generated", "samples": 24}},
        cuts={"two": {"blocks": 2}},
        evaluations={"seen": {"zeroshot": {"colours": {"images": "colours"}}}},
        tables={"clip": {**names, "evaluation": "seen"}},
    )
    measured, table = "results/clip/baseline/evaluation/seen.json", "results/tables/clip.csv"
    done = project.snakemake(measured)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not project.attempts.exists()
    assert list(json.loads((project.folder / measured).read_text())["tasks"]) == ["colours_acc1"]
    left = project.jobs(table)
    assert "evaluate_baseline" not in left and left["evaluate"] == left["merge"] == 2 and left["table"] == 1
    picture = next((project.folder / "colours/test/blue").iterdir())
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert project.jobs(measured) == {"evaluate_baseline": 1}
