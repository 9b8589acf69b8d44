"""Files of the user's own: names that others read as more than names, homes, and times in the future."""

import os
import shlex
import time

import pytest
import yaml
from snakemake.io import apply_wildcards

from replaceme.config.base import PATHS, expanded
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import to_flags
from replaceme.config.schema import load
from replaceme.evaluation.lm_eval import _absolute
from replaceme.planning.check_local import check_inputs
from replaceme.planning.user_files import declared, model_files, stamps, task_files, text_file

ODD = [
    "a b", "{model}", "{a,b}", "x{1,2}", "[ab]", "*", "a?", "~", "~root", "-a", "--out", "'", '"', "$HOME", "\\", "ü",
    "%s", "a;b", "a&b", "#a", "`a`", "!a", "日本",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ODD)
def test_a_path_is_that_path_for_everyone(here, llama, name):
    """For Snakemake, for the shell and for a data set's reader: an input, a parameter and an option of its own name."""
    folder = here / name
    folder.mkdir()
    (folder / f"{name}.jsonl").write_text("{}\n")
    (folder / "task.yaml").write_text("task: t\n")
    files = task_files(f"./{name}")
    assert sorted(path.name for path in files) == sorted([f"{name}.jsonl", "task.yaml"])
    for path in declared(files):
        assert apply_wildcards(str(path), {"model": "other"}) == str(path)
    assert len(stamps(files)) == 2 and len(declared(files)) == (0 if "{" in name else 2)
    assert text_file(str(folder / f"{name}.jsonl")) == [str(folder / f"{name}.jsonl")]
    option = to_flags(CalibrationConfig(dataset=f"./{name}/{name}.jsonl"), ("dataset",))
    assert shlex.split(option) == [f"--dataset=./{name}/{name}.jsonl"]
    (here / "model").symlink_to(llama)
    assert model_files("./model")[0].name == "config.json"


@pytest.mark.parametrize("name", ["[ab]", "*?", "x{1,2}", "a b", "~", "\\'ü%20#"])
def test_data_of_a_task_are_found_under_any_name(tmp_path, name):
    from datasets import load_dataset

    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.jsonl").write_text('{"a": 1}\n')
    found = _absolute({"test": f"{name}.jsonl"}, tmp_path / name, "t")
    assert len(load_dataset("json", data_files=found, split="test", cache_dir=str(tmp_path / "cache"))) == 1


@pytest.mark.parametrize("name", ["$HOME", "a::b"])
def test_data_that_datasets_cannot_open_are_named(tmp_path, refuses, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "x.jsonl").write_text("{}\n")
    with refuses("evaluation task 't'", f"{name}/x.jsonl: datasets opens nothing whose path holds", "rename it"):
        _absolute("x.jsonl", tmp_path / name, "t")


def test_the_home_in_paths(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert expanded("~/m") == f"{here}/m" and expanded("~") == str(here)
    for same in ("a~", "./~", "owner/name", "~nobody-of-this-name/x", "micro", "./m"):
        assert expanded(same) == same
    row = {"models": ["m"], "calibrations": ["c"], "cuts": ["n"], "fits": ["f"], "evaluation": "e"}
    reference = {"file": "~/p.csv", "columns": {"x": "average"}, "rows": ["m"]}
    drawn = {"kind": "lines", "tables": ["t"], "published": {"file": "~/p.csv", "label": "l", "x": "x"}}
    drawn["published"]["columns"] = {"average": "x"}
    images = {"images": "~/images"}
    included = {"models": {"m": {"source": "~/m"}}, "cuts": {"n": {"blocks": 1}}, "fits": {"f": {}}}
    (here / "other.yaml").write_text(yaml.safe_dump(included))
    config = {
        "include": ["~/other.yaml"],
        "calibrations": {"c": {"dataset": "~/c.txt"}, "i": images},
        "evaluations": {"e": {"tasks": {"q": {}}, "include": "~/tasks"}, "z": {"zeroshot": {"d": images}}},
        "tables": {"t": {**row, "reference": reference}},
        "figures": {"g": {**drawn, "measures": ["average"]}},
    }
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    found = load(here / "config.yaml")
    paths = [
        found.models["m"].source, found.calibrations["c"].dataset, found.calibrations["i"].images,
        found.evaluations["e"].include, found.evaluations["z"].zeroshot["d"].images, found.tables["t"].reference.file,
        found.figures["g"].published.file,
    ]  # fmt: skip
    assert all(path.startswith(f"{here}/") for path in paths) and len(paths) > len(PATHS)


@pytest.mark.parametrize(
    ("section", "spoiled"),
    [
        ("models.m", "model/config.json"),
        ("calibrations.c", "c.txt"),
        ("evaluations.e", "tasks/t.yaml"),
        ("link", "c.txt"),
    ],
)
def test_a_file_from_the_future_is_named_before_work(here, llama, refuses, section, spoiled):
    """Snakemake fails a job with such an input, when it is done."""
    import shutil

    shutil.copytree(llama, here / "model")
    (here / "tasks").mkdir()
    (here / "tasks/t.yaml").write_text("task: q\n")
    (here / "c.txt").write_text("a b c\n")
    row = {"models": ["m"], "calibrations": ["c"], "cuts": ["n"], "fits": ["f"], "evaluation": "e", "speed": False}
    config = {
        "models": {"m": {"source": "model"}},
        "calibrations": {"c": {"dataset": "c.txt", "tokens": 16}},
        "cuts": {"n": {"blocks": 1}},
        "fits": {"f": {}},
        "evaluations": {"e": {"tasks": {"q": {}}, "include": "tasks"}},
        "tables": {"t": row},
    }
    (here / "config.yaml").write_text(yaml.safe_dump(config))
    found = load(here / "config.yaml")
    check_inputs(found, "config.yaml")
    tomorrow = time.time() + 86400
    if section == "link":
        (here / "c.txt").rename(here / "d.txt")
        (here / "c.txt").symlink_to("d.txt")
        section = "calibrations.c"
    os.utime(here / spoiled, (tomorrow, tomorrow), follow_symlinks=False)
    with refuses(f"config.yaml: {section}: {spoiled} is dated in the future", "`touch` the file"):
        check_inputs(found, "config.yaml")
