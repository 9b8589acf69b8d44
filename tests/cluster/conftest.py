"""A Slurm of this machine's own, and the small project of the workflow tests."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from workflow.conftest import pristine, project, shared  # noqa: F401 (fixtures of the tests of the workflow)

HERE = Path(__file__).parent
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")


def missing() -> str | None:
    """Return why there can be no Slurm here, if there cannot."""
    if os.geteuid() != 0:
        return "only root can bring up a Slurm"
    absent = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin") is None]
    if absent:
        return f"no {', '.join(absent)} here; `make slurm` installs Debian's slurm-wlm and munge, and runs this test"
    if Path("/etc/slurm/slurm.conf").exists() or Path("/run/slurm/conf").exists():
        return "this machine has a Slurm of its own, which is left alone"
    return None


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A one-node Slurm with four CPUs and four GPUs, all pretended; gives its environment, ends it with its jobs."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        up = subprocess.run([HERE / "slurm-up.sh", folder], capture_output=True, text=True, timeout=60)
        if up.returncode != 0:
            pytest.skip(f"Slurm does not start here: {up.stderr.strip().splitlines()[-1:]}")
        yield {"SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([HERE / "slurm-down.sh", folder], capture_output=True, timeout=60)
