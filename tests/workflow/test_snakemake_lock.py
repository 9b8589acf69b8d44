"""The one line about a locked folder: who is at work in it, or what the last run left."""

import json
import logging
import os
import subprocess
import sys
import time

import pytest

from replaceme.workflow import snakemake_lock as running
from replaceme.workflow.snakemake_lock import NOTE, begin, check_folders, settle_times, told_when_locked, why_locked


@pytest.fixture
def working(tmp_path):
    """A function that starts a process in a folder, by a name, that waits to be ended."""
    started = []

    def start(name, folder=tmp_path):
        command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", f"/bin/{name}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        started.append(subprocess.Popen(["bash", "-c", f'exec -a {name} "$@"', "-", *command], cwd=folder, **pipes))
        started[-1].stdout.readline()
        return started[-1].pid

    yield start
    for process in started:
        process.communicate()


def test_a_run_and_its_jobs(tmp_path, working):
    assert why_locked(tmp_path) == f"{tmp_path}: the last snakemake here was killed; `snakemake --unlock` and run again"
    (tmp_path / "other").mkdir()
    working("snakemake", tmp_path / "other")
    working("vim")
    jobs = sorted([working("replaceme"), working("replaceme.workflow.gpu_lock")])
    line = why_locked(tmp_path)
    assert f"its jobs are still at work (processes {jobs[0]}, {jobs[1]})" in line and "--unlock" in line
    number = working("snakemake")
    line = why_locked(tmp_path)
    assert f"another snakemake is at work here (process {number})" in line and "--unlock" not in line


def test_a_run_of_another_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/.tmp-x-1.2").mkdir()
    monkeypatch.setattr(running.platform, "node", lambda: "node-7")
    begin("results")
    assert not list((tmp_path / "results").iterdir())
    assert json.loads(NOTE.read_text())["machine"] == "node-7" and "was killed;" in why_locked(tmp_path)
    monkeypatch.undo()
    assert "a snakemake was started here on node-7" in why_locked(tmp_path)
    (tmp_path / NOTE).write_text("{")
    assert "was killed;" in why_locked(tmp_path)


def test_files_from_the_future_come_back_in_their_order(tmp_path):
    now, year = time.time_ns(), 365 * 86400 * 10**9
    times = {"old": now - year, "new": now, "sooner": now + year, "later": now + 2 * year}
    for name, when in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(when, when))
    assert settle_times(tmp_path) == 2 and settle_times(tmp_path) == 0
    found = {name: (tmp_path / name).stat().st_mtime_ns for name in times}
    assert found["old"] == times["old"] and found["new"] == times["new"]
    assert found["sooner"] < found["later"] <= time.time_ns()
    assert settle_times(tmp_path / "missing") == 0


def test_only_that_message_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = [logging.makeLogRecord({"msg": text}) for text in ("Error: Directory cannot be locked. ...\nline", "a %s")]
    told[1].args = ("b",)
    assert all(told_when_locked(record) for record in told)
    assert [record.getMessage() for record in told] == [why_locked(tmp_path), "a b"]


@pytest.mark.parametrize("name", ["results", "results/logs", "results/mine"])
def test_a_folder_of_results_that_cannot_be_one(tmp_path, refuses, name):
    results, path = tmp_path / "results", tmp_path / name
    path.parent.mkdir(exist_ok=True)
    check_folders(results, ["mine"])
    path.touch()
    with refuses(f"{path}: a file where results need a folder", "--directory"):
        check_folders(results, ["mine"])
    path.unlink()
    path.symlink_to("nowhere")
    with refuses(f"{path}: a link to nowhere, which is not there", "remove the link"):
        check_folders(results, ["mine"])
    (path.parent / "nowhere").mkdir()
    check_folders(results, ["mine"])
