"""One forward pass for several planned jobs: the same bytes as of a pass each, and alone wherever there is a doubt."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from given import FULL

from replaceme.activations.statistics import Statistics
from replaceme.cli import main
from replaceme.core.errors import ReplaceMeError
from replaceme.steps import shared_pass
from replaceme.workflow.planned import LIST, VARIABLE, Plan, PlannedJob

FILES = ("model.json", "tokens.safetensors", "cut-a.json", "cut-b.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_llama, texts):
    """A model's record, tokens and two cuts, and the results of all jobs, each by a pass of its own."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    run(["model", make_llama(), "--out", folder / "model.json"])
    record = folder / "model.json"
    run(["tokens", record, "--dataset", folder / "text.jsonl", "--samples", 40, "--out", folder / FILES[1]])
    for name, start in (("a", 2), ("b", 3)):
        run(["cut", record, "--blocks", 2, "--start", start, "--out", folder / f"cut-{name}.json"])
    for job in jobs(folder):
        run([job.step, *job.arguments])
    return folder


def run(words):
    assert main([str(word) for word in words]) == 0, words


def jobs(folder, **changed):
    """Planned jobs over the same tokens: sums of two cuts and of two placements, rows, distances; and another shard."""
    given = [str(folder / name) for name in FILES]

    def job(step, out, *words, cuts=()):
        arguments = [*given[:2], *cuts, "--batch-size", "4", *words, "--threads", "1", "--out", str(folder / out)]
        return PlannedJob(step, arguments, "code", [*given[:2], *cuts], **changed)

    return [
        job("gram", "a-mlp", cuts=given[2:3]),
        job("gram", "b-mlp", cuts=given[3:]),
        job("gram", "a-down", "--placement", "down_proj", cuts=given[2:3]),
        job("rows", "rows", "--fit-tokens", "50", cuts=given[3:]),
        job("distances", "distances.safetensors"),
        job("gram", "shard", "--shard", "1", "--shards", "2", cuts=given[2:3]),
    ]


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    """A copy of the inputs, with a plan of all jobs; `passes` has the steps that have run one."""
    for name in FILES:
        shutil.copy2(made / name, tmp_path / name)
    (tmp_path / ".planned").mkdir()
    write(tmp_path, jobs(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / ".planned" / LIST))
    return tmp_path


@pytest.fixture
def passes(monkeypatch):
    """The steps that have run a pass."""
    found, collect = [], shared_pass._collect
    monkeypatch.setattr(shared_pass, "_collect", lambda step, *given: (found.append(step), collect(step, *given)))
    return found


def write(folder, planned):
    (folder / ".planned" / LIST).write_text(json.dumps([asdict(one) for one in planned]))


def files(path):
    return [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())


def same(made, project, job):
    """Whether the result of a job has the bytes of that by a pass of its own."""
    ours, theirs = (files(folder / Path(job.out).name) for folder in (project, made))
    assert len(ours) == len(theirs) > 0
    return all(one.read_bytes() == other.read_bytes() for one, other in zip(ours, theirs, strict=True))


def test_one_pass_serves_all_jobs_of_a_text(made, project, passes):
    planned = jobs(project)
    for job in planned:
        run([job.step, *job.arguments])
        assert same(made, project, job)
    assert passes == ["gram", "gram"]  # one of all tokens, one of the second shard
    assert (project / "distances.csv").read_bytes() == (made / "distances.csv").read_bytes()
    left = [one.name for one in files(project / ".planned")]
    assert [name for name in left if not name.endswith(".lock")] == [LIST]


def test_records_are_those_of_a_pass_of_its_own(made, project, monkeypatch):
    monkeypatch.setenv("REPLACEME_RESULTS", str(project))
    planned = jobs(project)[:2]
    for job in planned:
        run([job.step, *job.arguments])
    together = [json.loads((project / f"records/{Path(job.out).name}.json").read_text()) for job in planned]
    monkeypatch.delenv(VARIABLE)
    for job, record in zip(planned, together, strict=True):
        run([job.step, *job.arguments])
        assert json.loads((project / f"records/{Path(job.out).name}.json").read_text()) == record


def test_a_job_with_other_inputs_than_were_gathered_from_runs_alone(project, passes):
    first, second = jobs(project)[:2]
    run([first.step, *first.arguments])
    os.utime(project / "cut-b.json", (1, 1))
    run([second.step, *second.arguments])
    assert passes == ["gram", "gram"]


def test_what_a_killed_run_left_waiting_serves_the_next(made, project, passes):
    first, second = jobs(project)[:2]
    run([first.step, *first.arguments])
    write(project, [second])
    run([second.step, *second.arguments])
    assert passes == ["gram"] and same(made, project, second)


@pytest.mark.parametrize("what", ["options", "code", "no plan"])
def test_a_job_that_is_not_as_planned_runs_alone(made, project, passes, what, monkeypatch):
    first, second = jobs(project)[:2]
    run([first.step, *first.arguments])
    if what == "options":
        second.arguments[second.arguments.index("--batch-size") + 1] = "5"
    elif what == "code":
        write(project, [PlannedJob(**{**asdict(one), "code": "other"}) for one in jobs(project)])
    else:
        monkeypatch.delenv(VARIABLE)
    run([second.step, *second.arguments])
    assert passes == ["gram", "gram"]


def test_inputs_that_this_run_still_makes_are_waited_for(project):
    plan = Plan.of_environment()
    os.utime(project / ".planned" / LIST, (2, 2))
    os.utime(project / "cut-a.json", (1, 1))
    (awaited, *_) = jobs(project, awaited=[str(project / "cut-a.json")])
    assert not plan.is_due(awaited) and plan.is_due(jobs(project)[0])
    os.utime(project / "cut-a.json", (3, 3))
    assert plan.is_due(awaited)
    (project / "cut-a.json").unlink()
    assert not plan.is_due(awaited)


def test_another_job_that_cannot_run_is_left_to_itself(made, project, passes, capsys):
    planned = jobs(project)
    (project / "cut-b.json").write_text("{}")
    run([planned[0].step, *planned[0].arguments])
    assert same(made, project, planned[0])
    assert main([planned[1].step, *planned[1].arguments]) == 1
    assert "cut-b.json" in capsys.readouterr().err


@pytest.mark.parametrize("error", [MemoryError("full"), *map(RuntimeError, FULL)], ids=str)
def test_a_pass_that_fails_for_others_is_run_for_one(made, project, passes, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr("replaceme.cuts.distances.Distances.add", full)
    first = jobs(project)[0]
    run([first.step, *first.arguments])
    assert same(made, project, first) and passes == ["gram", "gram"]


def test_a_result_that_cannot_be_written_is_left_to_its_job(made, project, passes, monkeypatch):
    """The others, which are written at the same time, wait for theirs; nothing half-written is left."""
    save, refused = Statistics.save_all, []

    def full(path, groups, *given):
        if Path(path).is_relative_to(project / ".planned") and groups[0].width != groups[0].hidden_size:
            refused.append(path)
            raise ReplaceMeError(f"{path}: cannot write")
        save(path, groups, *given)

    monkeypatch.setattr(Statistics, "save_all", full)
    for job in jobs(project)[:5]:
        run([job.step, *job.arguments])
        assert same(made, project, job)
    assert passes == ["gram", "gram"] and len(refused) == 1


@pytest.mark.parametrize(("free", "together"), [(1.0, False), (3.1, True)])
def test_rows_of_others_take_half_of_the_disk(made, project, passes, monkeypatch, free, together):
    """Those of the job itself come first."""
    planned = [one for one in jobs(project) if one.step in ("rows", "distances")]
    first = planned[0]
    other = replace(first, arguments=[one.replace("/rows", "/again") for one in first.arguments])
    write(project, [*planned, other])
    needed = 50 * (16 + 16) * 2
    monkeypatch.setattr("replaceme.core.disk.shutil.disk_usage", lambda _: SimpleNamespace(free=int(free * needed)))
    run([first.step, *first.arguments])
    assert same(made, project, first) and passes == ["rows"]
    waiting = list((project / ".planned").rglob("index.json"))
    assert bool(waiting) == together


def test_a_pass_that_fails_otherwise_is_not_run_again(project, passes, monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr("replaceme.cuts.distances.Distances.add", wrong)
    first = jobs(project)[0]
    with pytest.raises(RuntimeError, match="shapes differ"):
        main([first.step, *first.arguments])
    assert passes == ["gram"]


def test_memory_bounds_what_is_gathered_for_others(made, project, passes, monkeypatch):
    monkeypatch.setitem(shared_pass.MEMORY_SHARE, "cpu", 0.0)
    first, second = jobs(project)[:2]
    for job in (first, second):
        run([job.step, *job.arguments])
        assert same(made, project, job)
    assert passes == ["gram", "gram"]
