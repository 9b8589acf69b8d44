"""`keep_models: false`: weights go after their last use, come back for a later one, and never lie there in excess."""

import argparse
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from replaceme.config.schema import parse
from replaceme.config.tables import Row
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, RESULTS_VARIABLE, write_json
from replaceme.models.removed_weights import are_removed, missing_weights, remove_weights
from replaceme.workflow import passing_weights
from replaceme.workflow.list_readers import write_readers
from replaceme.workflow.passing_weights import Passing, Readers, list_at, weights_for

WEIGHTS = b"weights"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SHOWN = {"table": 1, "figure_table": 1, "provenance": 1}
FITS = "results/tiny.v1/plain/n1"
CONFIG = {
    "models": {"m": {"source": "org/m"}},
    "calibrations": {"c": {"dataset": "micro"}},
    "cuts": {"n": {"blocks": 1}},
    "fits": {"f": {}, "g": {"ridge": 1.0}},
    "healings": {"h": {"train": "full", "text": "c", "steps": 1, "learning_rate": 0.1}},
    "evaluations": {"e": {"tasks": {"piqa": {}}}},
    "tables": {
        "passing": {"rows": ["m/c/n/f", "m/c/n/g", "m/c/n/g/h"], "evaluation": "e", "keep_models": False},
        "kept": {"rows": ["m/c/n/f"], "evaluation": None},
    },
}


def write_model(folder, content=WEIGHTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARDS:
        (folder / name).write_bytes(content)
    write_json(
        folder / RECORD, {"files": {"config.json": "0"} | dict.fromkeys(SHARDS, hashlib.sha256(content).hexdigest())}
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a workflow: `make` lists models by name with the jobs that read them, each of one output.

    `commands` are those by which models were made again.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RESULTS_VARIABLE, "results")
    commands = []

    def has_run(command, threads, lock):
        commands.append(command)
        write_model(tmp_path / command[command.index("--out") + 1], run.content)
        return True

    def make(models, room=9, **more):
        entries = {}
        for name, jobs in models.items():
            write_model(tmp_path / f"results/{name}/model")
            command = [
                "merge",
                "model.json",
                "--out",
                f"results/{name}/model",
                "--report",
                f"results/{name}/report.json",
            ]
            passing = {
                "kept": False,
                "readers": {job: [job] for job in jobs},
                "command": command,
                "threads": 1,
                "gpus": 0,
            }
            entries[f"results/{name}/model"] = {**passing, "source": None, **more.get(name, {})}
        write_json(list_at("results"), {"room": room, "models": entries})
        time.sleep(0.01)  # outputs are younger

    monkeypatch.setattr(passing_weights, "_has_run", has_run)
    run = argparse.Namespace(make=make, commands=commands, content=WEIGHTS)
    return run


def read(out, step="evaluate"):
    """Be the job that reads a model and writes `out`."""
    with weights_for(step, argparse.Namespace(out=out)):
        write_json(out, {})


def lying(*names):
    return [name for name in names if not missing_weights(f"results/{name}/model")]


def test_the_last_reader_removes_the_weights(run):
    Path("a2.json").touch()  # of an earlier run
    os.utime("a2.json", (0, 0))
    run.make({"a": ["a1.json", "a2.json"], "b": ["b1.json"]})
    read("a1.json")
    assert lying("a", "b") == ["a", "b"]
    with pytest.raises(ValueError, match="fails"), weights_for("speed", argparse.Namespace(out="a2.json")):
        raise ValueError("fails")
    assert lying("a", "b") == ["a", "b"], "its job runs again"
    read("a2.json")
    assert lying("a", "b") == ["b"] and are_removed("results/a/model") and run.commands == []


def test_a_reader_that_ends_while_another_reads(run):
    run.make({"a": ["a1.json", "a2.json"]})
    with weights_for("evaluate", argparse.Namespace(out="a1.json")):
        read("a2.json")
        write_json("a1.json", {})
        assert lying("a")
    assert not lying("a")


def test_a_reader_that_ends_while_a_healing_reads(run):
    """Which is no job, as it makes a healed model again."""
    run.make({"a": ["a1.json"]})
    with passing_weights._present(Readers.of_environment(), "results/a/model"):
        read("a1.json")
        assert lying("a")
    assert not lying("a")


@pytest.mark.parametrize("left", [0, 1])  # all were removed, or a kill came between
def test_missing_weights_are_made_again_beside_the_model(run, left):
    run.make({"a": ["a1.json", "a2.json"]})
    before = Path("results/a/model", RECORD).stat()
    for name in SHARDS[left:]:
        Path("results/a/model", name).unlink()
    with weights_for("evaluate", argparse.Namespace(out="a1.json")):
        assert lying("a")
    again = ["merge", "model.json", "--out", "results/a/.again/model", "--report", "results/a/.again/report.json"]
    assert run.commands == [again]
    after = Path("results/a/model", RECORD).stat()
    assert after.st_mtime_ns == before.st_mtime_ns, "nothing that was made from it is out of date"
    assert [path.name for path in Path("results/a").iterdir()] == ["model"]


def test_weights_made_again_otherwise_are_refused(run):
    run.make({"a": ["a1.json"]})
    remove_weights("results/a/model")
    run.content = b"others"
    with pytest.raises(ReplaceMeError, match=r"made again, differ from its record .* delete it and run again"):
        read("a1.json")
    assert are_removed("results/a/model") and not Path("results/a/.again").exists()


def test_a_job_without_a_gpu_makes_nothing_that_takes_one(run, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run.make({"a": ["a1.json"]}, a={"gpus": 1})
    remove_weights("results/a/model")
    with pytest.raises(ReplaceMeError, match=r"fewer; make them first: .* --forcerun merge"):
        read("a1.json")
    assert run.commands == []


def test_what_is_kept_or_listed_nowhere_stays(run, monkeypatch):
    run.make({"a": ["a1.json"]}, a={"kept": True})
    remove_weights("results/a/model")
    read("a1.json")
    assert lying("a") and len(run.commands) == 1
    monkeypatch.delenv(RESULTS_VARIABLE)
    run.make({"a": ["a1.json"]})
    read("a1.json")
    assert lying("a"), "a step by hand"


def test_a_healed_model_is_made_from_one_that_is_made_again(run):
    run.make({"a": [], "h": ["h1.json"]}, h={"source": "results/a/model"})
    for name in ("a", "h"):
        remove_weights(f"results/{name}/model")
    read("h1.json")
    assert [command[command.index("--out") + 1] for command in run.commands] == [
        "results/a/.again/model", "results/h/.again/model",
    ]  # fmt: skip
    assert lying("a", "h") == []


def test_models_wait_as_far_as_there_is_room(run):
    """The weights of one that is read stay; one that waits makes room for the next, and is made again."""
    run.make({name: [f"{name}1.json"] for name in "abcd"}, room=4)
    remove_weights("results/d/model")
    read("d1.json")
    assert lying(*"abcd") == ["a", "b", "c"] and len(run.commands) == 1
    run.make({name: [f"{name}1.json"] for name in "abcd"}, room=3)
    remove_weights("results/d/model")
    with weights_for("evaluate", argparse.Namespace(out="a1.json")):
        with weights_for("merge", argparse.Namespace(out="results/d/model")):
            write_model(Path("results/d/model"))
        assert lying(*"abcd") == ["a", "c", "d"]
        read("b1.json")
        assert len(lying(*"abcd")) == 2 and "a" in lying(*"abcd") and len(run.commands) == 2


class Output(tuple):
    """Outputs, of which the first is the record of a model."""

    record = property(lambda self: self[0])


@dataclass(frozen=True, eq=False)
class Job:
    """A job as Snakemake has it, as far as it is looked at."""

    rule: SimpleNamespace
    shellcmd: str
    output: Output
    resources: dict
    threads: int = 2


def job(rule, words, *made):
    return Job(
        SimpleNamespace(name=rule), f"lock 1 -- replaceme {words} 2> log", Output(made), {"gpu": int(rule == "heal")}
    )


def test_who_reads_what_is_listed(tmp_path, monkeypatch):
    """Of rows that pass, and of a fit behind a healed row without weights though no job of the run reads it."""
    monkeypatch.chdir(tmp_path)
    fit, healed, kept = (f"results/m/c/n/{name}" for name in ("g", "g/healed/h", "f"))
    made = {
        folder: job("merge", f"merge cut.json --out {folder}/model", f"{folder}/model/{RECORD}")
        for folder in (fit, kept)
    }
    made[healed] = job("heal", f"heal {fit}/model --out {healed}/model", f"{healed}/model/{RECORD}")
    evaluations = {one: job("evaluate", f"evaluate --out {one}/e.json", f"{one}/e.json") for one in (healed, kept)}
    cost = job("cost", "cost results --out cost", "cost.csv")
    sources = {made[healed]: made[fit], **{evaluations[one]: made[one] for one in evaluations}, cost: made[kept]}
    dag = SimpleNamespace(
        jobs=[*made.values(), *evaluations.values(), cost], needrun_jobs=lambda: [*evaluations.values(), cost]
    )
    dag.dependencies = {one: {sources[one]: set()} if one in sources else {} for one in dag.jobs}
    write_readers(dag, parse(CONFIG), room=3)
    listed = Readers(list_at("results"))
    assert set(listed.models) == {f"{fit}/model", f"{healed}/model"} and listed.room == 3
    assert listed.read_by(f"{healed}/e.json") == f"{healed}/model"
    assert listed.models[f"{healed}/model"] == Passing(
        False,
        {f"{healed}/e.json": [f"{healed}/e.json"]},
        ["heal", f"{fit}/model", "--out", f"{healed}/model"],
        2,
        1,
        f"{fit}/model",
    )
    assert listed.models[f"{fit}/model"].readers == {}
    write_model(tmp_path / kept / "model")
    remove_weights(tmp_path / kept / "model")
    write_readers(dag, parse(CONFIG), room=3)
    assert Readers(list_at("results")).models[f"{kept}/model"].kept
    dag.needrun_jobs = list
    write_readers(dag, parse(CONFIG), room=3)
    assert not list_at("results").exists()


def test_a_row_passes_where_no_table_keeps_it():
    assert parse(CONFIG).passing == {Row("m", "c", "n", "g"), Row("m", "c", "n", "g", "h")}
    kept = {**CONFIG["tables"]["kept"], "keep_models": False}
    with pytest.raises(ReplaceMeError, match="drop `keep_models: false`"):
        parse({**CONFIG, "tables": {"kept": kept}})


def weights(project):
    return sorted(
        str(path.relative_to(project.folder)) for path in project.folder.rglob("results/**/model/*.safetensors")
    )


def test_a_run_and_a_later_edit(completed):
    """Of a finished run a switch of the key runs nothing; a later evaluation runs alone, killed on its way or not."""
    table = completed.config()["tables"]["main.1"]
    records = {path: path.read_bytes() for path in completed.folder.rglob(f"{FITS}/*/model/{RECORD}")}
    completed.config(tables={"main.1": {"keep_models": False}})
    assert completed.jobs() == {} and len(records) == len(weights(completed)) == 2
    completed.config(speed={"new_tokens": 3})
    assert completed.snakemake().returncode == 0
    assert weights(completed) == []
    done = completed.replaceme("verify", "results")
    assert done.returncode == 0 and "; 2 models without their weights)" in done.stdout, done.stderr
    done = completed.replaceme("speed", f"{FITS}/ls/model", "--out", "speed.json")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "its weights were removed" in done.stderr

    completed.config(evaluations={"quiz": {"include": "tasks", "tasks": {"pick": {}}}})
    completed.config(tables={"quiz": {**table, "evaluation": "quiz", "keep_models": False}})
    jobs = {"evaluate": 2, "evaluate_baseline": 1, **SHOWN}
    said = completed.snakemake("--dry-run")
    assert "the weights of 2 models are removed after their last use; 2 have none now" in said.stdout + said.stderr
    assert completed.jobs() == jobs
    killed = completed.snakemake(REPLACEME_TEST_KILL="merge:2")
    assert killed.returncode != 0 and weights(completed) == []
    done = completed.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    log = (completed.folder / "results/logs/tiny.v1/plain/n1/ls/evaluation/quiz.log").read_text()
    assert "made again: merge" in log and "nothing more reads them" in log
    assert weights(completed) == [] and not list(completed.folder.rglob("results/**/.again"))
    assert {path: path.read_bytes() for path in records} == records
    assert [row["fit"] for row in completed.table("quiz")] == ["baseline", "uidl", "ls"]
    assert completed.jobs() == {}
    assert not completed.attempts.exists(), completed.attempts.read_text()
