"""Bad input of any kind ends in one line that names the file, the key and the remedy; nothing runs or is written."""

import shutil

import pytest
from hostile import configs, datasets, models, tasks, transforms
from hostile.stage import check_refused, make, run, write_project

KINDS = {
    "config": configs.CASES,
    "model": models.CASES,
    "dataset": datasets.CASES,
    "task": tasks.CASES,
    "transform": transforms.CASES,
}
CASES = {f"{kind}: {name}": case for kind, cases in KINDS.items() for name, case in cases.items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory, make_llama):
    """A project that works, with what the steps make of it."""
    folder = tmp_path_factory.mktemp("hostile") / "project"
    shutil.copytree(make_llama(), folder / "model")
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        write_project(folder)
        make()
    return folder


@pytest.fixture
def stage(project, tmp_path, monkeypatch):
    """A copy of the project, where the test runs."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
    _without_tasks_of_lm_eval(monkeypatch)
    folder = shutil.copytree(project, tmp_path / "inside" / "project")
    monkeypatch.chdir(folder)
    return folder


def _without_tasks_of_lm_eval(monkeypatch):
    """Leave out lm-eval's index, which takes 10 s to make; test_evaluate shows that unknown names are looked up in
    it.
    """
    import lm_eval.tasks

    real = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: real(**given | {"include_defaults": False}))


def test_the_project_works(stage):
    assert run(["check", "config.yaml"]) == (0, [])
    assert run(transforms.MERGE)[0] == run(tasks.EVALUATE)[0] == 0


def test_there_are_many():
    assert len(CASES) > 120


@pytest.mark.parametrize("case", CASES)
def test_refused(stage, case):
    check_refused(CASES[case], stage)
