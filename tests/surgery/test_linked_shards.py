"""Models of one cut share what they have in common, byte for byte, and nothing else."""

import stat
from pathlib import Path

import pytest
import torch
from given import cut_of
from safetensors.torch import load_file, save_file

from replaceme.core.files import RESULTS_VARIABLE, noted, sha256
from replaceme.models.removed_weights import remove_weights, weights_of
from replaceme.surgery import linked_shards, shards
from replaceme.surgery.fold import finish
from replaceme.surgery.linked_shards import twins_of
from replaceme.surgery.write_checkpoint import merging
from replaceme.transforms.transform import Transform

CUT = cut_of([[2, 4]], 6)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
    return tmp_path / "results"


def merged(source, results, fit, factor=1.0, cut=CUT, name="cut"):
    """A model as a workflow makes it, and whether each of its shards is also that of another one."""
    out = results / name / fit / "model"
    made = Transform(torch.eye(16, dtype=torch.float64) * factor, {"solver": "by hand"})
    noted().clear()
    with merging(source, out, twins=twins_of(out)) as merger:
        finish(merger, cut, [made], {})
    assert all(path.is_relative_to(source) for path in noted().read), "another model is no input of this one"
    paths = sorted(out.glob("*.safetensors"))
    assert weights_of(out) == {path.name: sha256(path) for path in paths}
    return out, [path.stat().st_nlink > 1 for path in paths]


def test_what_no_fit_changes_lies_there_once(sharded, results, tmp_path):
    first, alone = merged(sharded, results, "a", 2.0)
    second, linked = merged(sharded, results, "b", 3.0)
    assert not any(alone) and len(linked) > 2 and all(linked[:-1]) and not linked[-1]
    with merging(sharded, tmp_path / "copied") as merger:
        finish(merger, CUT, [Transform(torch.eye(16, dtype=torch.float64) * 3.0, {"solver": "by hand"})], {})
    for path in second.iterdir():
        assert path.read_bytes() == (tmp_path / "copied" / path.name).read_bytes()
    shared = min(second.glob("*.safetensors"))
    assert shared.samefile(first / shared.name) and stat.S_IMODE(shared.stat().st_mode) == 0o444
    remove_weights(first)
    assert weights_of(second) == {path.name: sha256(path) for path in second.glob("*.safetensors")}


@pytest.mark.parametrize("spoil", ["a byte", "shorter", "its record", "gone"])
def test_other_bytes_are_not_linked(sharded, results, spoil):
    first, _ = merged(sharded, results, "a")
    for path in first.glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        if spoil == "a byte":
            content[-1] ^= 1
        path.write_bytes(content[:-1] if spoil == "shorter" else content)
        if spoil == "gone":
            path.unlink()
    if spoil == "its record":
        (first / "replaceme.json").write_text("{")
    assert not any(merged(sharded, results, "b")[1])


def test_what_cannot_be_made_read_only_is_not_linked(sharded, results, monkeypatch):
    first, _ = merged(sharded, results, "a")
    before, chmod = {path: path.read_bytes() for path in first.iterdir()}, Path.chmod

    def refused(path, mode):
        if mode == 0o444:
            raise PermissionError(1, "not yours")
        chmod(path, mode)

    monkeypatch.setattr(Path, "chmod", refused)
    assert not any(merged(sharded, results, "b")[1])
    assert before == {path: path.read_bytes() for path in first.iterdir()}


def test_a_shard_that_the_other_fit_changed_is_not_linked(sharded, results):
    """Its header may be the same."""
    first, _ = merged(sharded, results, "a")
    path = min(first.glob("*.safetensors"))
    tensors = {name: tensor + 1 for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert merged(sharded, results, "b")[1][0] is False


def test_neither_other_cuts_nor_models_by_hand_nor_other_filesystems(sharded, results, monkeypatch):
    merged(sharded, results, "a")
    assert not any(merged(sharded, results, "b", cut=cut_of([[1, 3]], 6), name="other")[1])
    monkeypatch.delenv(RESULTS_VARIABLE)
    assert not any(merged(sharded, results, "c")[1])
    monkeypatch.setenv(RESULTS_VARIABLE, str(results / "elsewhere"))
    assert not any(merged(sharded, results, "c2")[1])
    monkeypatch.setenv(RESULTS_VARIABLE, str(results))

    def fails(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(linked_shards.os, "link", fails)
    assert not any(merged(sharded, results, "d")[1])


def test_a_large_model_in_one_file_becomes_two(llama, results, monkeypatch):
    (whole, _), shape = merged(llama, results, "whole"), {}
    assert [path.name for path in whole.glob("*.safetensors")] == ["model.safetensors"]
    monkeypatch.setattr(shards, "SPLIT", 0)
    split, _ = merged(llama, results, "split", name="again")
    names = sorted(path.name for path in split.glob("*.safetensors"))
    assert names == [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for path in split.glob("*.safetensors"):
        shape |= load_file(path)
    plain = load_file(whole / "model.safetensors")
    assert shape.keys() == plain.keys() and all(torch.equal(shape[name], plain[name]) for name in plain)
    assert merged(llama, results, "next", 2.0, name="again")[1] == [True, False]
