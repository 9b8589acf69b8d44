"""The workflow on a real one-node Slurm: the bytes of a local run, devices by the scheduler, nothing left behind."""

import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import pytest
from workflow.conftest import ROOT, Project, copy_tree

from replaceme.config.schema import load
from replaceme.models.checkpoints import open_checkpoint
from replaceme.planning.job_resources import needs
from replaceme.planning.job_work import work_of
from replaceme.planning.outline import outline_of

pytestmark = pytest.mark.slurm
TEXT = {"capture_output": True, "text": True, "timeout": 60}
LIMIT = "420"  # seconds for the run on Slurm: so many more than it takes, for a machine that has other work too
NAMES = {"model": "micro", "calibration": "plain", "cut": "n6", "fit": "ls"}
ROW = "/".join(NAMES.values())
TASK = {"tasks": {"pick": None, "last_word": None, "micro_home": {}}, "perplexity": None, "limit": 40}
# the embedded model, a cut by hand, as its choice would be one more job to wait for, and one short task
CONFIG = {
    "device": "auto",
    "models": {"tiny.v1": None, "micro": {"source": str(ROOT / "resources/micro")}},
    "calibrations": {"plain": {"dataset": "micro", "samples": 16, "tokens": 128}},
    "cuts": {"n1": None, "n6": {"blocks": 6, "start": 2}},
    "evaluations": {"items": {"include": str(ROOT / "resources/tasks"), **TASK}},
    "tables": {"main.1": {"models": ["micro"], "cuts": ["n6"], "fits": ["ls"]}},
}
TABLE = "results/tables/main.1.csv"
ONE_EACH = ("sum", "transform", "merge", "verify", "evaluate", "evaluate_baseline", "speed", "speed_baseline")
SUBMITTED = {"gram": 2, **dict.fromkeys(ONE_EACH, 1)}
GPU_RULES = {"gram", "transform", "verify", "evaluate", "evaluate_baseline", "speed", "speed_baseline"}
# files that hold times, and records that hold the hash of such a one
TIMED = re.compile(r"(logs|benchmarks|tables|records/tables)/|.*/speed\.json|records/.*/evaluation/")
TIMES = ("seconds", "content_sha256")  # keys of JSON files whose values are times, or the digest of what holds them


@dataclass(frozen=True)
class Run:
    """A finished run, what Slurm says of its jobs, and the same run without Slurm."""

    project: Project
    local: Project
    jobs: list[dict[str, str]]
    seconds: float


@pytest.fixture(scope="module")
def run(slurm, pristine, tmp_path_factory):
    """Model and tokens where Snakemake runs, as where nodes have no network; the rest by jobs of Slurm."""
    base = tmp_path_factory.mktemp("on-slurm")
    project = Project(copy_tree(pristine.folder, base / "project"), pristine.code)
    project.config(**CONFIG)
    finish(project, project.command("results/micro/plain/tokens.safetensors"))
    local = Project(copy_tree(project.folder, base / "local"), pristine.code)
    command = project.command(
        TABLE, "--workflow-profile", str(pristine.code / "profiles/slurm"),
        "--slurm-init-seconds-before-status-checks", "5", "--slurm-status-command", "squeue", "--slurm-no-account",
        "--latency-wait", "20", "--retries", "0", "--jobs", "8", "--resources", "gpu=4",
        "--set-resources", "verify:runtime=77", cores=None,
    )  # fmt: skip
    began = time.monotonic()
    # jobs import what a user's do, as what they cost is measured
    finish(project, ["timeout", "-k", "5", LIMIT, *command], **slurm, REPLACEME_TEST_WARM="")
    seconds = time.monotonic() - began
    listed = subprocess.run(
        ["scontrol", "show", "job", "-o"], env=slurm | {"PATH": "/usr/bin:/bin"}, **TEXT, check=True
    )
    finish(local, local.command(TABLE))
    return Run(project, local, [record(line) for line in listed.stdout.splitlines() if "Comment=" in line], seconds)


def finish(project, command, **environment):
    """Run a command to an end without an error."""
    done = project.execute(command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def record(line: str) -> dict[str, str]:
    """Return a line of `scontrol show job -o`."""
    return dict(re.findall(r"(\w+)=(\S+)", line))


def rule_of(job):
    return re.match(r"rule_([a-z_]+?)(_wildcards_.*)?$", job["Comment"])[1]


def contents(folder):
    """Return the files made from a model and a text, by path: hashes, or records without their times."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: content(path) for name, path in files.items() if not TIMED.match(name)}


def content(path):
    return untimed(json.loads(path.read_bytes())) if path.suffix == ".json" else sha256(path.read_bytes()).hexdigest()


def untimed(value):
    if not isinstance(value, dict):
        return value
    return {key: untimed(one) for key, one in value.items() if key not in TIMES}


def test_the_bytes_are_those_of_a_local_run(run):
    """Of every intermediate, of the merged model, and of evaluations and the table apart from times."""
    here, there = (contents(project.folder / "results") for project in (run.project, run.local))
    assert here == there
    merged = {"model.safetensors", "config.json", "replaceme.json", "tokenizer.json"}
    assert {f"{ROW}/model/{name}" for name in merged} <= here.keys()
    assert run.project.table() == run.local.table() != []


def test_what_computes_goes_to_slurm_and_the_rest_stays(run):
    rules = [rule_of(job) for job in run.jobs]
    assert {rule: rules.count(rule) for rule in rules} == SUBMITTED
    assert {job["JobState"] for job in run.jobs} == {"COMPLETED"}


def test_what_a_job_costs(run, capsys):
    """Its time on the node without that of its step: Slurm and Snakemake's two starts; printed, for docs/cluster.md."""
    taken = sum((ended(job) - began(job)).total_seconds() for job in run.jobs)
    steps = sum(step_seconds(run.project.folder / "results/benchmarks/micro"))
    assert 0 < steps < taken
    with capsys.disabled():
        print(f"\non Slurm: {len(run.jobs)} jobs in {run.seconds:.0f} s, {taken / len(run.jobs):.1f} s each", end="")
        print(f", of which {steps / len(run.jobs):.1f} s are its step's")


def step_seconds(benchmarks):
    """Yield seconds of the commands of the submitted jobs."""
    for path in benchmarks.rglob("*.tsv"):
        if path.name not in ("model.tsv", "tokens.tsv", "cut.tsv"):
            yield float(path.read_text().splitlines()[1].split()[0])


def test_jobs_ask_for_what_their_model_and_text_take(run):
    config = load(run.project.folder / "my.yaml")
    outline = outline_of(open_checkpoint(ROOT / "resources/micro"), "micro")
    names = {**NAMES, "kind": "mlp", "shard": "0", "shards": "2"}
    for job in run.jobs:
        if rule_of(job) in ("gram", "sum", "transform", "merge"):
            asked = needs(rule_of(job), outline, work_of(rule_of(job), config, names, outline), "cuda")
            assert job["MinMemoryNode"] == f"{asked.mem_mb}M"
            assert job["TimeLimit"] == f"{asked.runtime // 60:02d}:{asked.runtime % 60:02d}:00"


def test_what_the_user_sets_for_a_rule_counts(run):
    assert [job["TimeLimit"] for job in run.jobs if rule_of(job) == "verify"] == ["01:17:00"]


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
    """Return a command that shows its devices and ends once the other one runs too."""
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
    launch = f"{shlex.quote(sys.executable)} -m replaceme.workflow.gpu_lock"
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
