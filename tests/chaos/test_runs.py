"""Two runs of the workflow on one folder: the second is told of the first, the next one of the first one's end."""

import subprocess
import time

import pytest
from workflow.conftest import Project, copy_tree, wait_for_orphans


def start(project):
    """Snakemake at work, its output in a file."""
    with (project.folder / "run.log").open("w") as stream:
        options = {"cwd": project.folder, "env": project.environment(), "stdout": stream, "stderr": subprocess.STDOUT}
        return subprocess.Popen(project.command(), **options)


def refusal(project):
    """What a run says where the folder is locked: one line of ours, and nothing of Snakemake's own."""
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
