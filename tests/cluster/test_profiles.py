"""The profiles are read by their plugins, and what they plan asks for GPUs, memory and time; no cluster is needed."""

import importlib.util
import re

import pytest
from workflow.conftest import ROOT

from replaceme.planning.job_resources import TABLE

PROFILES = ("slurm", "kubernetes")


def planned(project, profile, *more):
    """Return the job list of a dry run by a profile; the volume of `kubernetes` is the project's own folder."""
    if importlib.util.find_spec(f"snakemake_executor_plugin_{profile}") is None:
        pytest.skip("without requirements-cluster.txt, which `make slurm` installs")
    volume = ["--default-storage-prefix", str(project.folder)] if profile == "kubernetes" else []
    where = ["--workflow-profile", str(project.code / "profiles" / profile)]
    done = project.snakemake("--dry-run", "--printshellcmds", *where, *volume, *more, cores=None)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_auto_takes_the_gpus_that_the_profile_grants(project, profile):
    """Not those of the machine that submits."""
    project.config(device="auto")
    text = planned(project, profile)
    assert text.count("python -m replaceme.workflow.gpu_lock 1 -- replaceme gram") == 2
    assert text.count("python -m replaceme.workflow.gpu_lock 1 -- replaceme verify ") == 2
    assert "not here yet" not in text


def test_without_granted_gpus_auto_is_the_cpu_and_an_unknown_model_is_said_once(project):
    table = {**project.config()["tables"]["main.1"], "models": ["far"]}
    project.config(device="auto", models={"far": {"source": "owner/name"}}, tables={"main.1": table})
    text = planned(project, "slurm", "--resources", "gpu=0")
    assert (
        text.count("python -m replaceme.workflow.gpu_lock 0 -- replaceme gram") == 2
        and "replaceme.workflow.gpu_lock 1" not in text
    )
    assert text.count("models.far: not here yet, so its jobs ask for memory and time as one of 8 billion") == 1
    assert not project.attempts.exists()


def rules():
    """Return the text of every rule: a dry run does not show what jobs with a message ask for."""
    texts = [path.read_text() for path in sorted((ROOT / "rules").glob("*.smk"))]
    found = [re.findall(r"^rule (\w+):\n(.*?)(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL) for text in texts]
    return {rule: body for of_file in found for rule, body in of_file}


def test_a_model_is_checked_and_measured_before_the_next_is_made():
    priority = {rule: re.findall(r"^    priority: (\w+)$", body, re.MULTILINE) for rule, body in rules().items()}
    finished = {rule for rule, body in rules().items() if '=checkpoint_files(paths.OF_FIT)["record"]' in body}
    assert {"verify", "evaluate", "divergence", "speed", "export"} == finished - {"heal"}  # which makes another model
    assert all(priority.pop(rule) == ["MEASURES"] for rule in finished - {"heal", "verify"})
    assert priority.pop("verify") == ["CHECKS"]
    choosing, gathering = {"parts", "distances", "candidates", "cut"}, {"gram", "recycle", "sum"}
    for name, those in (("CHOOSES", choosing), ("GATHERS", gathering)):
        assert {rule for rule, given in priority.items() if given == [name]} == those
    assert sum(map(len, priority.values())) == len(choosing | gathering)
    assert all(
        f"    priority: rows_first.of_{what}\n" in rules()[rule]
        for rule, what in (("rows", "rows"), ("transform", "fit"))
    )
    timed = (ROOT / "rules/cut.smk").read_text().partition("use rule parts as parts_timed with:")[2]
    assert "    priority: FIRST\n" in timed.partition("\n\n\n")[0], "while nothing else runs"
    in_order = "\nFIRST, CHOOSES, GATHERS, CHECKS, MEASURES = 10_000, 4, 3, 2, 1\n"
    assert in_order in (ROOT / "rules/common.smk").read_text()


def test_every_rule_asks_for_memory_and_time_or_is_local():
    assert len(rules()) > 20
    for rule, body in rules().items():
        assert ("localrule: True" in body) != (f'**takes("{rule}")' in body), rule
        assert "localrule: True" in body or rule in TABLE
