"""Text that is both calibrated or healed on and measured on is told, from a config and from a checkpoint's record."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import yaml

from replaceme.config.schema import parse
from replaceme.core.files import write_json
from replaceme.evaluation import overlap

RAW = {
    "models": {"m": {"source": "nowhere/model"}},
    "cuts": {"n": {"blocks": 1}},
    "fits": {"f": {}},
    "speed": {},
    "tables": {"t": {"models": ["m"], "calibrations": ["c"], "cuts": ["n"], "fits": ["f"], "evaluation": "e"}},
}


@pytest.fixture
def folder(tmp_path):
    """Task files: one on a local file, in a group and by a tag, one on a data set of the Hub."""
    tasks = tmp_path / "tasks"
    (tasks / "data").mkdir(parents=True)
    (tasks / "data/items.jsonl").write_text('{"text": "w1 w2"}\n')
    (tasks / "data/train.jsonl").write_text('{"text": "w1 w3"}\n')
    files = {"test": "data/items.jsonl", "train": "data/train.jsonl"}
    base = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "tag": "tagged"}
    (tasks / "base.yaml").write_text(yaml.safe_dump(base) + "doc_to_text: !function own.text\n")
    for name, content in {
        "local": {"task": "local", "include": "base.yaml"},
        "group": {"group": "grouped", "task": [{"task": "local"}]},
        "hub": {"task": "hub", "dataset_path": "Owner/Text", "dataset_name": "en", "validation_split": "validation"},
    }.items():
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(content))
    # its file is named by a function, which is not run
    (tasks / "by_function.yaml").write_text(
        "task: computed\ndataset_path: json\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: !function own.files}}\n"
    )
    (tasks / "broken.yaml").write_text("local: [\n")
    return tasks


@pytest.fixture
def told(folder, tmp_path):
    """A function that gives the lines about a calibration and some tasks."""

    def lines(calibration, tasks=("local",), more=None, **table):
        raw = json.loads(json.dumps(RAW))
        raw["calibrations"] = {"c": calibration, **(more or {})}
        raw["evaluations"] = {"e": {"include": str(folder), "tasks": {task: {} for task in tasks}}}
        raw["healings"] = {"h": {"train": "full", "text": "healing", "steps": 1, "learning_rate": 0.1}} if table else {}
        raw["tables"]["t"] |= table
        return overlap.all_seen_texts(parse(raw))

    return lines


@pytest.mark.parametrize("task", ["local", "grouped", "tagged"])
def test_the_same_file_by_path_or_by_content(told, folder, tmp_path, task):
    same = folder / "data/items.jsonl"
    (tmp_path / "link.jsonl").symlink_to(same)
    shutil.copy(same, tmp_path / "copy.jsonl")
    for path in (same, tmp_path / "link.jsonl", tmp_path / "copy.jsonl"):
        [line] = told({"dataset": str(path)}, [task])
        assert line.startswith(f"calibrations.c: {path} is what task 'local' of evaluations.e measures on, so that")
    for path in ("data/train.jsonl", "data/none.jsonl"):  # of equal size, and not there
        assert told({"dataset": str(folder / path)}, [task]) == []
    assert told({"dataset": "micro"}, [task]) == []
    assert told({"dataset": str(same)}, ["computed"]) == []


def test_the_same_split_of_the_hub(told):
    hub = {"dataset": "owner/text", "name": "en", "split": "validation"}
    for change in ({}, {"name": None}, {"split": "train+validation[:10%]"}):
        assert len(told({**hub, **change}, ["hub"])) == 1, change
    for change in ({"name": "de"}, {"split": "train"}, {"dataset": "owner/other"}):
        assert told({**hub, **change}, ["hub"]) == [], change


def test_parts_of_mixes_and_texts_of_healings(told, folder):
    seen, other = {"dataset": str(folder / "data/items.jsonl")}, {"dataset": "micro"}
    [line] = told({"mix": {"a": 1, "b": 1}, "samples": 2}, more={"a": seen, "b": other})
    assert line.startswith("calibrations.a: ")
    [line] = told(other, more={"healing": {**seen, "samples": 99}}, healings=["h"])
    assert line.startswith("calibrations.healing: ")


def test_a_checkpoint_made_with_what_is_measured(folder, tmp_path, caplog):
    task = SimpleNamespace(
        task_name="local",
        config=SimpleNamespace(
            dataset_path="json", dataset_kwargs={"data_files": [str(folder / "data/items.jsonl")]}, test_split="train"
        ),
    )
    digest = overlap.sha256(folder / "data/items.jsonl")
    text = {"dataset": "gone.jsonl", "file_sha256": digest}
    for record, count in (
        ({"origin": {"calibration": {"mix": [{"dataset": "micro"}, text]}}}, 1),
        ({"source": {"origin": {"text": text}}}, 1),
        ({"origin": {"calibration": {**text, "file_sha256": "0" * 64}}}, 0),
        ({"origin": {}}, 0),
    ):
        caplog.clear()
        write_json(tmp_path / "replaceme.json", record)
        with caplog.at_level(logging.WARNING):
            overlap.warn(tmp_path, [task])
        assert len(caplog.records) == count, record
    caplog.clear()
    overlap.warn(folder, [task])
    assert not caplog.records, "no record, no warning"


def test_check_tells_it(folder, tmp_path, capsys, caplog):
    from replaceme.cli import main

    raw = {**RAW, "calibrations": {"c": {"dataset": str(folder / "data/items.jsonl")}}}
    raw["evaluations"] = {"e": {"include": str(folder), "tasks": {"local": {}}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    assert main(["check", str(tmp_path / "c.yaml")]) == 0
    assert "task 'local' of evaluations.e measures on" in capsys.readouterr().err + caplog.text
