"""Killed jobs, a killed Snakemake and a full disk: the next run ends as if nothing had happened."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess

import pytest

CUT = "results/tiny.v1/plain/n1"


def temporaries(folder):
    return sorted(path.name for path in folder.rglob(".tmp-*"))


def test_kills_left_something_behind(reference):
    """What the kills did, or the next test would prove nothing."""
    seen = reference.kills()
    assert seen["after the kill of jobs"]["returncode"] != 0
    names = [name.split("-")[1] for name in seen["after the kill of jobs"]["temporaries"]]
    assert names == ["0", "1", "model"]
    assert seen["after the kill of snakemake"]["returncode"] == -signal.SIGKILL
    assert seen["locked"]["returncode"] != 0 and "--unlock" in seen["locked"]["output"]


def test_kills_change_nothing(reference, by_hand):
    """The rows are those of the steps without Snakemake, which nobody killed, byte for byte apart from timings."""
    assert reference.table() == by_hand.table()
    assert not temporaries(reference.folder)


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for one model of the tests, but not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=88k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def contents(path):
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def refuses_to_write(done, out, before):
    """Check for one line, a non-zero exit, the old output as it was, and nothing beside it."""
    assert done.returncode == 1, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error" in line.lower() or "Traceback" in line]
    assert len(errors) == 1 and errors[0].startswith(f"replaceme: error: {out}"), done.stderr
    assert "cannot write" in errors[0] and "free some space" in errors[0]
    assert contents(out) == before
    assert not temporaries(out.parent)


def test_a_full_disk(reference, small_disk):
    out = small_disk / "model"
    shutil.copytree(reference.folder / f"{CUT}/ls/model", out)
    before = contents(out)
    inputs = ("results/tiny.v1/model.json", f"{CUT}/cut.json", f"{CUT}/uidl/transform.safetensors")
    done = reference.replaceme("merge", *inputs, "--out", str(out))
    refuses_to_write(done, out, before)


def test_a_file_that_may_not_grow(reference, tmp_path):
    out = tmp_path / "sum.safetensors"
    shutil.copy2(reference.folder / f"{CUT}/gram/mlp/sum-of-2.safetensors", out)
    before = contents(out)
    shards = [f"{CUT}/gram/mlp/{shard}-of-2.safetensors" for shard in range(2)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        done = reference.replaceme("sum", *shards, "--out", str(out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refuses_to_write(done, out, before)
