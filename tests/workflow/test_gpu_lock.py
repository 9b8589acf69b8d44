"""GPU locks with pretended devices: none is booked twice, and all are freed however their job ends."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replaceme.core.errors import ReplaceMeError
from replaceme.workflow import gpu_lock
from replaceme.workflow.gpu_lock import acquire, visible

SHOW = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
# takes its devices by creating a file each, exclusively: a second job on the same device fails
CLAIM = """
import os, pathlib, sys, time
claims = [pathlib.Path(sys.argv[1], name) for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
for claim in claims:
    claim.touch(exist_ok=False)
time.sleep(0.05)
for claim in claims:
    claim.unlink()
print(len(claims))
"""


@pytest.fixture(autouse=True)
def locks(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLACEME_GPU_LOCKS", str(tmp_path / "locks"))
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "locks"


def pretend(monkeypatch, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count))))


def start(count, command):
    command = [sys.executable, "-m", "replaceme.workflow.gpu_lock", str(count), "--", *command]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(count, command):
    process = start(count, command)
    out, err = process.communicate(timeout=60)
    return process.returncode, out.strip(), err.strip()


def holder(count):
    """Return a job that holds its devices until it is killed; returns once it has them."""
    process = start(count, [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"])
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process):
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("value", "names"),
    [("", []), ("-1", []), ("0", ["0"]), ("2, 0", ["2", "0"]), ("0,-1,1", ["0"]), ("1,1", ["1"]), ("GPU-a", ["GPU-a"])],
)
def test_visible_reads_the_variable_as_cuda_does(monkeypatch, value, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible() == names


def test_visible_counts_the_drivers_devices(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for address in ("0000:1a:00.0", "0000:1b:00.0"):
        (tmp_path / "gpus" / address).mkdir(parents=True)
    monkeypatch.setattr("replaceme.workflow.gpu_lock.DRIVER", tmp_path / "gpus")
    assert visible() == ["0", "1"]


@pytest.mark.parametrize("devices", [0, 1, 2, 3, 8])
def test_every_count_up_to_the_visible_devices(monkeypatch, devices):
    pretend(monkeypatch, devices)
    for count in {0, min(1, devices), devices}:
        code, out, err = run(count, SHOW)
        assert (code, err) == (0, "")
        assert out == ",".join(map(str, range(count)))
    with pytest.raises(ReplaceMeError, match=rf"^{devices + 1} GPU\(s\) asked for, {devices} visible"):
        acquire(devices + 1)


def test_asking_for_too_many_is_one_line(monkeypatch):
    pretend(monkeypatch, 2)
    code, out, err = run(3, SHOW)
    assert code == 1
    assert out == ""
    assert err.splitlines() == ["3 GPU(s) asked for, 2 visible; ask for fewer or set CUDA_VISIBLE_DEVICES"]


def test_no_gpu_hides_all_and_needs_no_lock(monkeypatch, locks):
    pretend(monkeypatch, 2)
    assert run(0, ["sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"]) == (0, "[]", "")
    assert not locks.exists()


def in_slurm_job(monkeypatch, job, devices, step=None):
    monkeypatch.delenv("REPLACEME_GPU_LOCKS")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    if step is not None:
        monkeypatch.setenv("SLURM_STEP_ID", step)
    if devices is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)


def test_slurm_has_assigned_the_devices(monkeypatch, tmp_path):
    """Jobs in which cgroups name other devices alike do not wait for each other; those of one allocation share it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    in_slurm_job(monkeypatch, "1", "5")
    assert run(1, SHOW) == (0, "5", "")
    assert run(2, SHOW)[2] == "2 GPU(s) asked for, 1 visible; ask for fewer or set CUDA_VISIBLE_DEVICES"
    first = holder(1)
    try:
        for job, step in (("2", None), ("1", "0")):
            monkeypatch.setenv("REPLACEME_GPU_LOCKS", "")  # as if it were not set
            in_slurm_job(monkeypatch, job, "5", step)
            assert run(1, SHOW) == (0, "5", "")
        monkeypatch.delenv("SLURM_STEP_ID")
        monkeypatch.setenv("SLURM_JOB_ID", "1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
        assert run(1, SHOW) == (0, "7", "")
    finally:
        kill(first)


@pytest.mark.parametrize("assigned", [None, "", "NoDevFiles"])
def test_a_slurm_job_without_gpus_sees_none(monkeypatch, tmp_path, assigned):
    """Whatever the driver shows: it may be others'."""
    (tmp_path / "gpus/0000:1a:00.0").mkdir(parents=True)
    monkeypatch.setattr("replaceme.workflow.gpu_lock.DRIVER", tmp_path / "gpus")
    in_slurm_job(monkeypatch, "1", assigned)
    assert visible() == []
    assert run(0, ["sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"]) == (0, "[]", "")


@pytest.mark.parametrize("devices", [1, 3])
def test_no_device_is_booked_twice(monkeypatch, tmp_path, devices):
    pretend(monkeypatch, devices)
    (tmp_path / "claims").mkdir()
    wanted = [1 + index % min(2, devices) for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        command = [sys.executable, "-c", CLAIM, str(tmp_path / "claims")]
        results = list(pool.map(lambda count: run(count, command), wanted))
    for count, (code, out, err) in zip(wanted, results, strict=True):
        assert code == 0, err
        assert out == str(count)


def test_jobs_are_spread_over_devices_of_several_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,00,1,01,GPU-a")
    jobs = [holder(1) for _ in range(3)]
    try:
        assert run(1, SHOW)[1] == "00" and run(2, SHOW)[1] == "00,01"
        kill(jobs.pop(1))
        assert run(1, SHOW)[1] == "1"
    finally:
        for job in jobs:
            kill(job)


def test_jobs_of_a_step_are_spread_over_devices(monkeypatch):
    """As if one after another had come, the second of them short: a fit is not beside the other fit."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,00,000,1,01,001")
    program = "import sys; from replaceme.workflow.gpu_lock import acquire; "
    program += "print(*(acquire(1, step=step)[0] for step in sys.argv[1:]))"
    steps = ["fit", "gram", "fit", "fit", "gram"]
    found = subprocess.run([sys.executable, "-c", program, *steps], capture_output=True, check=True)
    assert found.stdout.split() == [b"0", b"1", b"01", b"00", b"000"]


def test_a_job_never_has_a_device_by_two_names(monkeypatch):
    """CUDA would show it none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,00,000,1")
    assert run(2, SHOW)[1] == "0,1"
    assert run(3, SHOW)[2].startswith("3 GPU(s) asked for, 2 visible")
    on_0, on_1 = holder(1), holder(1)
    job = start(2, SHOW)
    assert job.stderr.readline() == "waiting for 2 of 4 GPU(s) in use by other jobs\n"
    kill(on_1)
    assert job.communicate(timeout=30)[0] == "00,1\n"
    kill(on_0)


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (["replaceme", "fit", "x"], "fit"),
        (["/a/replaceme", "gram"], "gram"),
        (["replaceme"], "replaceme"),
        (["sh"], "sh"),
    ],
)
def test_the_step_of_a_command(command, step):
    assert gpu_lock._step(command) == step


def test_sigkill_frees_the_device(monkeypatch):
    pretend(monkeypatch, 1)
    first = holder(1)
    second = start(1, SHOW)
    assert second.stderr.readline() == "waiting for 1 of 1 GPU(s) in use by other jobs\n"
    assert second.poll() is None
    kill(first)
    assert second.communicate(timeout=30)[0] == "0\n"


def test_all_or_nothing_leaves_a_free_device_to_others(monkeypatch):
    pretend(monkeypatch, 2)
    first = holder(1)
    both = start(2, SHOW)
    assert both.stderr.readline().startswith("waiting for 2 of 2")
    assert run(1, SHOW)[1] == "1"
    kill(first)
    assert both.communicate(timeout=30)[0] == "0,1\n"


def test_in_process_locks_are_kept_by_the_process(monkeypatch):
    pretend(monkeypatch, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if acquire(2) == ["0", "1"] else 1)
    assert os.waitpid(child, 0)[1] == 0
    began = time.monotonic()
    assert run(2, SHOW)[1] == "0,1"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "arguments", [[], ["1"], ["1", "--"], ["one", "--", "true"], ["-1", "--", "true"], ["1", "x", "y"]]
)
def test_wrong_usage_is_one_line(arguments):
    command = [sys.executable, "-m", "replaceme.workflow.gpu_lock", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == ["usage: python -m replaceme.workflow.gpu_lock N -- COMMAND..."]


def test_the_commands_exit_code_and_a_missing_command():
    assert run(0, ["sh", "-c", "exit 7"])[0] == 7
    missing = str(Path("/no/such/program"))
    assert run(0, [missing]) == (1, "", f"{missing}: No such file or directory")
