"""The workflow on a real one-node Slurm: the bytes of a local run, devices by the scheduler, nothing left behind."""

import hashlib
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from workflow.conftest import Project, copy_tree

from replaceme.checkpoints import open_checkpoint
from replaceme.config import load
from replaceme.needs import needs
from replaceme.outline import outline_of
from replaceme.workload import work_of

MINUTES = 3
TEXT = {"capture_output": True, "text": True, "timeout": 60}
# files whose bytes are times, or hold them
TIMED = ("logs/", "benchmarks/", "speed.json", "/evaluation/", "tables/")
OUTPUTS = 15
SUBMITTED = {
    "candidates": 1, "gram": 2, "sum": 1, "transform": 1, "merge": 1, "verify": 1, "evaluate": 1,
    "evaluate_baseline": 1, "speed": 1, "speed_baseline": 1,
}  # fmt: skip
GPU_RULES = SUBMITTED.keys() - {"sum", "merge", "verify"}


@dataclass(frozen=True)
class Run:
    """A finished run, and what Slurm says of its jobs."""

    project: Project
    jobs: list[dict[str, str]]
    seconds: float


@pytest.fixture(scope="module")
def run(slurm, pristine, tmp_path_factory):
    """Model and tokens where Snakemake runs, as where nodes have no network; the rest by jobs of Slurm."""
    project = Project(copy_tree(pristine.folder, tmp_path_factory.mktemp("on-slurm") / "project"), pristine.code)
    project.config(device="auto", fits={"uidl": None}, tables={"main.1": {"fits": ["ls"]}})
    first = project.snakemake("results/tiny.v1/plain/tokens.safetensors")
    assert first.returncode == 0, first.stderr
    command = project.command(
        "results/tables/main.1.csv", "--workflow-profile", str(pristine.code / "profiles/slurm"),
        "--slurm-init-seconds-before-status-checks", "1", "--slurm-status-command", "squeue", "--slurm-no-account",
        "--latency-wait", "20", "--retries", "0", "--jobs", "8", "--resources", "gpu=4", cores=None,
    )  # fmt: skip
    began = time.monotonic()
    done = project.execute(["timeout", "-k", "5", str(60 * MINUTES), *command], **slurm)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run(
        ["scontrol", "show", "job", "-o"], env=slurm | {"PATH": "/usr/bin:/bin"}, **TEXT, check=True
    )
    return Run(project, [record(line) for line in listed.stdout.splitlines() if "Comment=" in line], seconds)


def record(line: str) -> dict[str, str]:
    """A line of `scontrol show job -o`."""
    return dict(re.findall(r"(\w+)=(\S+)", line))


def rule_of(job):
    return re.match(r"rule_([a-z_]+?)(_wildcards_.*)?$", job["Comment"])[1]


def hashes(folder):
    """Hashes of what is made from a model and a text, by path."""
    files = [path for path in sorted((folder / "results").rglob("*")) if path.is_file()]
    named = {str(path.relative_to(folder / "results")): path for path in files}
    kept = {name: path for name, path in named.items() if not any(part in name for part in TIMED)}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in kept.items() if ".svg" not in name}


def test_the_bytes_are_those_of_a_local_run(run, reference):
    """Of every intermediate and of the merged model."""
    here, there = hashes(run.project.folder), hashes(reference.folder)
    assert {name for name in here if there.get(name) != here[name]} == set()
    merged = {"model.safetensors", "config.json", "replaceme.json", "tokenizer.json"}
    assert merged <= {Path(name).name for name in here} and len(here) >= OUTPUTS


def test_the_table_is_that_of_a_local_run(run, reference):
    """Apart from timings, and from the differences to a fit that is not in it."""
    rows = {row["fit"]: row for row in reference.table()}
    for row in run.project.table():
        same = [key for key in row if not key.endswith(("_vs_identity", "_vs_identity_stderr"))]
        assert len(same) > 10 and {key: row[key] for key in same} == {key: rows[row["fit"]][key] for key in same}


def test_what_computes_goes_to_slurm_and_the_rest_stays(run):
    rules = [rule_of(job) for job in run.jobs]
    assert {rule: rules.count(rule) for rule in rules} == SUBMITTED
    assert {job["JobState"] for job in run.jobs} == {"COMPLETED"}
    assert run.seconds < 60 * MINUTES


def test_jobs_ask_for_what_their_model_and_text_take(run):
    config = load(run.project.folder / "my.yaml")
    outline = outline_of(open_checkpoint(run.project.folder / "models/tiny/first"), "first")
    names = {"model": "tiny.v1", "calibration": "plain", "cut": "n1", "fit": "ls", "kind": "mlp"}
    names |= {"shard": "0", "shards": "2"}
    for job in run.jobs:
        if rule_of(job) in ("gram", "sum", "transform", "merge"):
            asked = needs(rule_of(job), outline, work_of(rule_of(job), config, names, outline), "cuda")
            assert job["MinMemoryNode"] == f"{asked.mem_mb}M"
            assert job["TimeLimit"] == f"{asked.runtime // 60:02d}:{asked.runtime % 60:02d}:00"


def test_shards_run_side_by_side_on_devices_of_their_own(run):
    first, second = (job for job in run.jobs if rule_of(job) == "gram")
    assert max(began(first), began(second)) < min(ended(first), ended(second))
    for job in run.jobs:
        assert ("gpu" in job.get("TresPerJob", "")) == (rule_of(job) in GPU_RULES), job


def began(job):
    return datetime.fromisoformat(job["StartTime"])


def ended(job):
    return datetime.fromisoformat(job["EndTime"])


SHOW = "echo [$CUDA_VISIBLE_DEVICES]"


def together(folder, name, other):
    """A command that shows its devices and ends once the other one runs too."""
    return f"sh -c '{SHOW}; touch {folder}/{name}; until [ -e {folder}/{other} ]; do sleep 0.1; done'"


def on_slurm(slurm, pristine, options, command):
    """Start a command as a job of Slurm."""
    environment = Project(pristine.folder, pristine.code).environment(**slurm)
    return subprocess.Popen(
        ["timeout", "-k", "5", "60", "srun", "-n1", "--mem=100", *options, "sh", "-c", command],
        env=environment, cwd=pristine.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_the_launcher_takes_the_devices_that_slurm_gives(slurm, pristine, tmp_path):
    """Two jobs have one each, two processes in a job of two share these, and a job without GPUs gets none."""
    launch = f"{sys.executable} -m replaceme.gpu"
    shared = [f"{launch} 1 -- {together(tmp_path, *names)}" for names in (("c", "d"), ("d", "c"))]
    jobs = {
        "one": (["--gpus=1"], f"{launch} 1 -- {together(tmp_path, 'a', 'b')}"),
        "other": (["--gpus=1"], f"{launch} 1 -- {together(tmp_path, 'b', 'a')}"),
        "two": (["--gpus=2"], f"{shared[0]} & {shared[1]} & wait"),
        "hidden": (["--gpus=1"], f"{launch} 0 -- sh -c '{SHOW}'"),
        "none given": ([], f"{launch} 1 -- sh -c '{SHOW}'"),
    }
    started = {name: on_slurm(slurm, pristine, *job) for name, job in jobs.items()}
    answers = {name: process.communicate(timeout=60) for name, process in started.items()}
    devices = {name: answer[0].split() for name, answer in answers.items()}
    for names in (("one", "other"), ("two",)):
        taken = [device for name in names for device in devices[name]]
        assert len(taken) == len(set(taken)) == 2 and set(taken) <= {f"[{k}]" for k in range(4)}, answers
    assert devices["hidden"] == ["[]"]
    assert devices["none given"] == [] and "1 GPU(s) asked for, 0 visible" in answers["none given"][1]


def test_nothing_is_left_in_the_queue(run, slurm):
    queue = subprocess.run(["squeue", "--noheader"], env=slurm | {"PATH": "/usr/bin:/bin"}, **TEXT, check=True)
    assert queue.stdout.strip() == ""
