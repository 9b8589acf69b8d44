"""The profiles are read by their plugins, and what they plan asks for GPUs, memory and time; no cluster is needed."""

import re

import pytest

PROFILES = ("slurm", "kubernetes")


def planned(project, profile, *more):
    """The job list of a dry run by a profile; the volume of `kubernetes` is the project's own folder."""
    volume = ["--default-storage-prefix", str(project.folder)] if profile == "kubernetes" else []
    where = ["--workflow-profile", str(project.code / "profiles" / profile)]
    done = project.snakemake("--dry-run", "--printshellcmds", *where, *volume, *more, cores=None)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_asks_for_gpus_memory_and_time(project, profile):
    """`device: auto` takes the GPUs that the profile grants, not those of the machine that submits."""
    project.config(device="auto")
    text = planned(project, profile, "--set-resources", "evaluate:mem_mb=4321")
    assert text.count("python -m replaceme.gpu 1 -- replaceme gram") == 2
    assert text.count("python -m replaceme.gpu 0 -- replaceme verify") == 2
    assert len(re.findall(r"mem_mb=4321\b", text)) == 2 and re.search(r"\bruntime=\d+", text)


def test_without_granted_gpus_auto_is_the_cpu(project):
    project.config(device="auto")
    text = planned(project, "slurm", "--resources", "gpu=0")
    assert text.count("python -m replaceme.gpu 0 -- replaceme gram") == 2 and "replaceme.gpu 1" not in text


def test_a_model_that_is_not_here_yet_is_said_once(project):
    table = {**project.config()["tables"]["main.1"], "models": ["far"]}
    project.config(models={"far": {"source": "owner/name"}}, tables={"main.1": table})
    text = planned(project, "slurm")
    assert text.count("models.far: not here yet, so its jobs ask for memory and time as one of 8 billion") == 1
    assert not project.attempts.exists()
    assert "not here yet" not in project.snakemake("--dry-run").stderr  # here they limit nothing
