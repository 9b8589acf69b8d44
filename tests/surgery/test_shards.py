"""Shards copied byte by byte, and checkpoints that are written in two goes."""

import json
import threading

import pytest
import torch
from given import cut_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from replaceme.core.files import sha256
from replaceme.models.weights import INDEX
from replaceme.surgery import shards as module
from replaceme.surgery.fold import finish, merge
from replaceme.surgery.shard_layout import layout_of
from replaceme.surgery.shards import copy_shard
from replaceme.surgery.write_checkpoint import merging
from replaceme.transforms.transform import Transform

CUT = cut_of([[2, 4]], 6)
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.bool)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_part_of_any_file_under_any_names(tmp_path, data):
    shapes = st.lists(st.integers(0, 5), max_size=3)
    kinds = data.draw(st.dictionaries(st.text(min_size=1, max_size=4), st.tuples(shapes, st.sampled_from(DTYPES))))
    generator = torch.Generator().manual_seed(len(kinds))
    tensors = {
        name: torch.randint(0, 2, shape, generator=generator).to(dtype) for name, (shape, dtype) in kinds.items()
    }
    names = [name for name in tensors if data.draw(st.booleans())]
    renamed = {name: f"new {number} {name}" for number, name in enumerate(names)}
    save_file(tensors, tmp_path / "source", {"format": "pt"})
    layout = layout_of(tmp_path / "source", renamed)
    (tmp_path / "target").unlink(missing_ok=True)
    copy_shard(layout, tmp_path / "target")
    found = load_file(tmp_path / "target")
    assert layout.tensor_bytes == sum(tensors[name].nbytes for name in names)
    assert found.keys() == set(renamed.values())
    for name, new in renamed.items():
        assert found[new].dtype == tensors[name].dtype and torch.equal(found[new], tensors[name])
    with safe_open(tmp_path / "target", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("error", sorted(module.NOT_HERE))
def test_a_filesystem_that_cannot_share(tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise OSError(error, "not here")

    monkeypatch.setattr("os.copy_file_range", fails)
    tensor = torch.arange(1000.0)
    save_file({"a": tensor, "b": -tensor}, tmp_path / "source")
    copy_shard(layout_of(tmp_path / "source", {"b": "c"}), tmp_path / "target")
    assert torch.equal(load_file(tmp_path / "target")["c"], -tensor)


def test_a_source_that_becomes_shorter(tmp_path):
    save_file({"a": torch.arange(1000.0)}, tmp_path / "source")
    layout = layout_of(tmp_path / "source", {"a": "b"})
    with (tmp_path / "source").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(OSError, match="became shorter"):
        copy_shard(layout, tmp_path / "target")


def test_a_whole_file_is_the_same_file(tmp_path):
    tensors = {"a": torch.arange(1000.0), "b": torch.ones(3)}
    save_file(tensors, tmp_path / "source", {"of": "somebody"})
    copy_shard(layout_of(tmp_path / "source", {name: name for name in tensors}), tmp_path / "target")
    assert (tmp_path / "source").read_bytes() == (tmp_path / "target").read_bytes()


@pytest.fixture
def transform():
    return Transform(torch.eye(16, dtype=torch.float64) * 2, {"solver": "by hand"})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("first", [[(2, 4)], [(1, 3)], [(1, 2), (4, 5)]], ids=str)
def test_begun_for_any_cut_the_end_is_the_same(sharded, tmp_path, transform, first):
    merge(sharded, CUT, [transform], tmp_path / "once", {})
    with merging(sharded, tmp_path / "twice") as merger:
        merger.begin(first)
        merger.begin(first)
        assert not (tmp_path / "twice").exists()
        finish(merger, CUT, [transform], {})
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")
    files = json.loads((tmp_path / "twice/replaceme.json").read_text())["files"]
    assert files == {name: sha256(tmp_path / "twice" / name) for name in files}


def test_every_shard_is_copied_but_the_one_that_changes(sharded, tmp_path, transform, monkeypatch):
    copied, real = [], module.copy_shard
    monkeypatch.setattr(
        module, "copy_shard", lambda layout, target: (copied.append(layout.source.name), real(layout, target))[1]
    )
    with merging(sharded, tmp_path / "out") as merger:
        merger.begin([(2, 4)])
        finish(merger, CUT, [transform], {})
    gone = {name for name in merger.checkpoint.tensors if ".layers.2." in name or ".layers.3." in name}
    changeable = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    weight_map = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert {name for name, file in weight_map.items() if file == last(tmp_path / "out")} == changeable
    kept = merger.checkpoint.tensors.keys() - gone - changeable
    assert sorted(copied) == sorted({merger.checkpoint.tensors[name][0] for name in kept})


def last(folder):
    return max(path.name for path in folder.glob("*.safetensors"))


def test_a_digest_that_is_known_is_not_computed_again(sharded, tmp_path, transform, monkeypatch):
    hashed, real = [], module.sha256
    monkeypatch.setattr(module, "sha256", lambda path: (hashed.append(path.name), real(path))[1])
    known = {path.name: sha256(path) for path in sharded.iterdir()}
    with merging(sharded, tmp_path / "out", known) as merger:
        finish(merger, CUT, [transform], {})
    files = json.loads((tmp_path / "out/replaceme.json").read_text())["files"]
    assert files == {name: sha256(tmp_path / "out" / name) for name in files}
    weights = {name for name in files if name.endswith(".safetensors")}
    assert set(hashed) < weights and last(tmp_path / "out") in hashed


def test_begun_and_not_finished_is_an_error(sharded, tmp_path):
    with pytest.raises(RuntimeError, match="not finished"), merging(sharded, tmp_path / "out") as merger:
        merger.begin([(2, 4)])
    assert not list(tmp_path.iterdir())


def test_a_failure_in_the_background_is_told_and_leaves_nothing(sharded, tmp_path, transform, monkeypatch, refuses):
    reached = threading.Event()

    def full(*_):
        reached.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "copy_shard", full)
    with refuses("cannot write", "free some space"), merging(sharded, tmp_path / "out") as merger:
        merger.begin([(2, 4)])
        assert reached.wait(10)
        finish(merger, CUT, [transform], {})
    assert not list(tmp_path.iterdir())
