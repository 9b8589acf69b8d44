"""Whole runs of the workflow, disturbed: plain `snakemake` again ends with the tables of the undisturbed run."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter

import psutil
import pytest
from workflow.conftest import Project, copy_tree, wait_for_orphans, works_in

KILLS = 12
SECONDS = 300  # for all of them
YEAR = 365 * 86400


def start(project):
    """Start Snakemake, its output in a file."""
    with (project.folder / "run.log").open("w") as stream:
        options = {"cwd": project.folder, "env": project.environment(), "stdout": stream, "stderr": subprocess.STDOUT}
        return subprocess.Popen(project.command(), **options)


def jobs_of(project, run):
    """Return steps that are at work in the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != run.pid and works_in(process, project.folder):
                words = process.cmdline()
                found += [process] if any(word.endswith("/replaceme") for word in words[:2]) else []
        except psutil.Error:
            continue
    return found


def finish(project):
    """Return a plain run, which must succeed."""
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def refusal(project):
    """Return what a run prints where the folder is locked: one line of ours, and nothing of Snakemake's own."""
    done = project.snakemake()
    output = done.stdout + done.stderr
    assert done.returncode != 0 and "cannot be locked" not in output and "Traceback" not in output, output
    lines = [line for line in output.splitlines() if line.startswith(f"{project.folder}: ")]
    assert len(lines) == 1, output
    return lines[0]


def wait_for(condition, seconds=200):
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def clean(pristine, tmp_path_factory):
    """An undisturbed run, and its seconds."""
    folder = copy_tree(pristine.folder, tmp_path_factory.mktemp("clean") / "project")
    project = Project(folder, pristine.code)
    begin = time.monotonic()
    finish(project)
    return project, time.monotonic() - begin


@pytest.fixture
def completed(clean, tmp_path):
    """A copy of the undisturbed run."""
    return Project(copy_tree(clean[0].folder, tmp_path / "completed"), clean[0].code)


@pytest.fixture
def fresh(pristine, tmp_path):
    """A project in which nothing ran."""
    return Project(copy_tree(pristine.folder, tmp_path / "fresh"), pristine.code)


@pytest.mark.chaos
def test_two_runs_in_one_folder(fresh, figures):
    """The second is told of the first, the next one of the first one's end."""
    run = start(fresh)
    wait_for(lambda: list((fresh.folder / ".snakemake/locks").glob("*")) or run.poll() is not None)
    line = refusal(fresh)
    assert f"another snakemake is at work here (process {run.pid})" in line and "wait for its end" in line
    run.kill()
    run.wait()
    line = refusal(fresh)
    assert "was killed" in line and "`snakemake --unlock`" in line
    wait_for_orphans(fresh.folder)
    figures["two runs in one folder"] = {"told_of_each_other": 1}


def kill_one(project, run, chance):
    """Kill a job, Snakemake, or both after some seconds; returns which, None where the run ended before."""
    end = time.monotonic() + chance.uniform(1, 8)
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.02)
    what = chance.choice(("job", "job", "snakemake", "both"))
    jobs = jobs_of(project, run) if what != "snakemake" else []
    if run.poll() is not None or (what == "job" and not jobs):
        return None
    if what != "job":
        run.send_signal(signal.SIGKILL)
    if jobs:
        try:
            chance.choice(jobs).kill()
        except psutil.NoSuchProcess:
            return None
    return what if jobs or what == "snakemake" else "snakemake"


def run_through_kills(project, chance, kinds, enough):
    """Run and kill until a run comes through."""
    while True:
        run = start(project)
        while run.poll() is None and not enough():
            what = kill_one(project, run, chance)
            if what is not None:
                kinds[what] += 1
            if what in ("snakemake", "both"):
                break
        status = run.wait(300)
        if status == 0:
            return
        if status == -signal.SIGKILL:
            if (project.folder / ".snakemake/locks").is_dir() and any((project.folder / ".snakemake/locks").iterdir()):
                assert "was killed" in refusal(project)
            wait_for_orphans(project.folder)
            assert project.snakemake("--unlock").returncode == 0


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_kills(clean, pristine, tmp_path, chance, figures):
    """Jobs and Snakemake itself, at any moment."""
    table, usual = clean[0].table(), clean[1]
    kinds, completions, begin = Counter(), 0, time.monotonic()

    def enough():
        return sum(kinds.values()) >= KILLS or time.monotonic() - begin > SECONDS

    while not enough():
        project = Project(copy_tree(pristine.folder, tmp_path / f"run-{completions}"), pristine.code)
        run_through_kills(project, chance, kinds, enough)
        assert project.table() == table and not list(project.folder.rglob(".tmp-*"))
        completions += 1
    seconds, kills = time.monotonic() - begin, sum(kinds.values())
    figures["kills in whole runs"] = {
        "kills": kills,
        "by_kind": dict(sorted(kinds.items())),
        "runs_completed": completions,
        "tables_as_undisturbed": completions,
        "undisturbed_seconds": round(usual, 1),
        "seconds_lost_mean": round((seconds - completions * usual) / kills, 1),
    }
    assert kills >= 5 and len(kinds) > 1


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_clocks(clean, completed, figures):
    """Times of files a year off in both directions, and an edit while all that is there is from the future."""
    chance = random.Random(0)
    for path in sorted((completed.folder / "results").rglob("*")):
        then = time.time() + chance.uniform(-YEAR, YEAR)
        os.utime(path, (then, then))
    finish(completed)
    assert completed.table() == clean[0].table()
    for path in sorted((completed.folder / "results").rglob("*")):
        os.utime(path, (time.time() + YEAR,) * 2)
    completed.config(fits={"ls": {"ridge": 0.5}})
    finish(completed)
    edited = completed.table()
    assert edited != clean[0].table()
    completed.config(fits={"ls": {"ridge": None}})
    finish(completed)
    assert completed.table() == clean[0].table()
    figures["clocks"] = {"runs": 3, "tables_as_expected": 3}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_damage(clean, completed, figures):
    """A run that meets a damaged file says so and puts it aside; the next makes it again, and all that follows."""
    folder = completed.folder / "results/tiny.v1"
    rows = [folder / "plain/n1" / fit for fit in ("uidl", "ls")]
    damaged = [folder / "plain/tokens.safetensors", *(row / "model/model.safetensors" for row in rows)]
    for path in damaged:
        then, content = path.stat(), bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))  # as of a bit that flips by itself
    # what is made of them is wanted again
    wanted = [folder / f"plain/distances.{ending}" for ending in ("safetensors", "csv", "svg")]
    wanted += [rows[0] / "speed.json", rows[1] / "evaluation/items.json"]
    for path in [*wanted, completed.folder / "results/tables/main.1.csv"]:
        path.unlink()
    first = completed.snakemake("--keep-going")
    output = first.stdout + first.stderr
    assert first.returncode != 0
    for path in damaged:
        whole = path if "model" not in path.parts[-2] else path.parent
        assert f"it is {whole.relative_to(completed.folder)}.damaged now" in output, output
    finish(completed)
    assert completed.table() == clean[0].table()
    figures["damage in a run"] = {"files": len(damaged), "runs_until_well": 2}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_a_full_disk(clean, pristine, mounted, figures):
    """A disk that is full in the midst of the run, then larger."""
    disk = mounted("64m")
    project = Project(copy_tree(pristine.folder, disk / "project"), pristine.code)
    run, fill = start(project), disk / "fill"
    wait_for(lambda: (project.folder / "results/tiny.v1/plain/n1/cut.json").exists() or run.poll() is not None)
    with fill.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:  # not what is free: the run takes some of that meanwhile
            file.write(bytes(2**20))
    assert run.wait(300) != 0
    fill.unlink()
    wait_for_orphans(project.folder)
    unlocked = project.snakemake("--unlock").returncode == 0
    finish(project)
    assert project.table() == clean[0].table()
    figures["full disk in a run"] = {"tables_as_undisturbed": 1, "unlocked": unlocked}


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_results_that_can_only_be_read(clean, pristine, mounted, figures):
    """The line of a job about it names the file; the tables come when it is mended."""
    disk = mounted("64m")
    project = Project(copy_tree(pristine.folder, disk.parent / "readonly"), pristine.code)
    (project.folder / "results").symlink_to(disk)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    done = project.snakemake()
    assert done.returncode != 0 and "Read-only file system" in done.stdout + done.stderr
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    project.snakemake("--unlock")
    finish(project)
    assert project.table() == clean[0].table()
    figures["results that can only be read"] = {"tables_as_undisturbed": 1}
