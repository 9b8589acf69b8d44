"""One host with pretended devices: each GPU job has its own, shards run side by side, and none are needed."""

import json
import os
from itertools import combinations
from pathlib import Path

import pytest
from workflow.conftest import STARTUP, Project, copy_tree

DEVICES = Path(__file__).parent / "devices"
SHARDS, CORES = 5, 5


@pytest.fixture(scope="module")
def ready(pristine, tmp_path_factory):
    """The project with a cut by hand and all that its shards are made from."""
    project = Project(copy_tree(pristine.folder, tmp_path_factory.mktemp("ready") / "project"), pristine.code)
    project.config(device="auto", calibrations={"plain": {"shards": SHARDS}}, cuts={"n1": {"start": 2}})
    done = project.snakemake("results/tiny.v1/plain/n1/cut.json", "results/tiny.v1/plain/tokens.safetensors")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.mark.parametrize("devices", [0, 1, 3])
def test_shards_share_the_devices_out(ready, tmp_path, devices):
    """The same command on every host; without a device the cores alone limit what runs at once."""
    notes = tmp_path / "notes"
    notes.mkdir()
    project = Project(copy_tree(ready.folder, tmp_path / "project"), ready.code)
    together = devices or CORES
    shards = [f"results/tiny.v1/plain/n1/gram/mlp/{k}-of-{SHARDS}.safetensors" for k in range(SHARDS)]
    done = project.snakemake(
        *shards, "--rerun-triggers", "mtime", cores=str(CORES),
        CUDA_VISIBLE_DEVICES=",".join(map(str, range(devices))), REPLACEME_GPU_LOCKS=str(tmp_path / "locks"),
        PYTHONPATH=os.pathsep.join(map(str, (DEVICES, STARTUP, project.code))), REPLACEME_TEST_DEVICES=str(notes),
        TOGETHER=str(together), TOTAL=str(SHARDS),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert project.job_stats(done.stdout + done.stderr) == {"gram": SHARDS}
    jobs = [json.loads(path.read_text()) for path in notes.glob("*.json")]
    assert len(jobs) == SHARDS
    names = {name for job in jobs for name in job["devices"].split(",") if name}
    assert names == set(map(str, range(devices)))
    at_once = [sum(one["began"] <= job["began"] < one["ended"] for one in jobs) for job in jobs]
    assert max(at_once) == min(together, SHARDS)
    for one, other in combinations(jobs, 2):
        if one["began"] < other["ended"] and other["began"] < one["ended"]:
            assert devices == 0 or one["devices"] != other["devices"]
    if devices:
        assert all("," not in job["devices"] for job in jobs)
