"""Faults of labelled images, and of the models that they measure, are found before anything runs."""

from types import SimpleNamespace

import pytest
from tiny_clip import write_clip, write_labelled

from replaceme.config.evaluations import ZeroShotConfig
from replaceme.config.schema import parse
from replaceme.core import disk
from replaceme.evaluation import labelled_images as labelled
from replaceme.planning import capacity, hub
from replaceme.planning import check_online as requisites
from replaceme.planning.check_local import check_inputs

CIFAR = {"images": "owner/cifar", "revision": "main"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The folder of a tiny CLIP."""
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of labelled pictures."""
    return str(write_labelled(tmp_path_factory.mktemp("labelled") / "pictures"))


@pytest.fixture
def config(clip):
    """A function that makes a config whose one table evaluates a model on labelled images."""

    def make(data, model=clip, **evaluation):
        return parse(
            {
                "device": "cpu",
                "models": {"m": {"source": str(model)}},
                "calibrations": {"c": {"images": "generated", "samples": 4}},
                "cuts": {"n": {"blocks": 2}},
                "fits": {"f": {}},
                "speed": {"prompt_tokens": 64},
                "evaluations": {"e": evaluation or {"zeroshot": {"d": data}}},
                "tables": {
                    "t": {"models": ["m"], "calibrations": ["c"], "cuts": ["n"], "fits": ["f"], "evaluation": "e"}
                },
            }
        )

    return make


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A function that says what a data set of a stand-in for the Hub holds: its files, and its kind."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**14))
    held = {}

    def repository(kind, name, revision):
        return hub.Repository(kind, name, revision, dict.fromkeys(held["files"], 0), None)

    def hf_hub_download(name, file, repo_type, revision):
        assert (name, repo_type, revision) == ("owner/cifar", "dataset", "main")
        (tmp_path / file).write_text(held["type"] + "\n")
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "repository", repository)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)

    def hold(*files, kind=None):
        held.update(files=[*files, *(["dataset_type.txt"] if kind else [])], type=kind)

    return hold


def test_images_of_a_folder(config, pictures, refuses):
    check_inputs(config({"images": pictures, "metrics": ["acc5"]}), "c.yaml")
    with refuses("c.yaml: evaluations.e.zeroshot.d:", "its labels are of classification"):
        check_inputs(config({"images": pictures, "metrics": ["image_retrieval_recall@5"]}), "c.yaml")
    with refuses("evaluations.e.zeroshot.d: /nowhere/pictures: no such folder"):
        check_inputs(config({"images": "/nowhere/pictures"}), "c.yaml")


def test_models_and_evaluations_of_another_kind(config, pictures, llama, tmp_path, refuses):
    with refuses("tables.t:", "an encoder of images alone, which no evaluation measures"):
        check_inputs(config({"images": pictures}, write_clip(tmp_path / "vit", "vit")), "c.yaml")
    with refuses("tables.t:", "an encoder, which tasks do not measure"):
        check_inputs(config(None, tasks={"boolq": {}}), "c.yaml")
    with refuses("calibrations.c on models.m", "a language model, which zeroshot does not measure", lines=2):
        check_inputs(config({"images": pictures}, llama), "c.yaml")


@pytest.mark.parametrize(
    ("files", "kind", "options", "line"),
    [
        (["test/0.tar", "classnames.txt"], None, {}, None),
        (["test/0.tar"], "retrieval", {"metrics": ["text_retrieval_recall@5"]}, None),
        (["train/0.tar", "classnames.txt"], None, {}, "no tar files under test/"),
        (["test/0.tar", "classnames.txt"], "multilabel", {}, "its labels are of multilabel, acc1 is of classification"),
        (["test/0.tar"], None, {}, "no classnames.txt in it; name `prompts`"),
    ],
)
def test_images_of_the_hub(fake, config, files, kind, options, line):
    fake(*files, kind=kind)
    found = requisites.problems(config({**CIFAR, **options}))
    assert len(found) == (line is not None)
    assert not line or (found[0].startswith("evaluations.e.zeroshot.d: owner/cifar:") and line in found[0])


def test_the_package(config, pictures, monkeypatch):
    monkeypatch.setattr(labelled, "find_spec", lambda name: None)
    [line] = requisites.problems(config({"images": pictures}))
    assert line.startswith("evaluations.e: zeroshot: needs the package clip-benchmark")


def test_memory(config, pictures):
    given = config({"images": pictures})
    outline = requisites._local_outline(given.models["m"].source, False)
    [line] = capacity.memory_problems(given, {"m": outline}, 4 * outline.parameters, "cpu")[:1]
    assert "the whole model in float32 takes about" in line


def test_images_are_downloaded_at_their_commit(pictures, tmp_path, monkeypatch):
    commit, asked = tmp_path / "c0ffee", {}
    commit.symlink_to(pictures)

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    found = labelled.labelled(ZeroShotConfig(**CIFAR))
    assert found.commit == "c0ffee" and len(list(found.samples())) == 24
    assert (asked["name"], asked["repo_type"], asked["revision"]) == ("owner/cifar", "dataset", "main")
    assert "test/*" in asked["allow_patterns"] and "*" not in asked["allow_patterns"]
