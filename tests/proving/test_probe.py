"""A dozen types that stand for the kinds are probed and proved; what is not proved is refused with the finding."""

import json
import shutil
from dataclasses import replace

import probe_all
import pytest
import torch
from given import cut_of
from transformers import AutoConfig

from replaceme.models.checkpoints import open_checkpoint, resolve
from replaceme.models.config_defaults import with_defaults
from replaceme.models.family import Family
from replaceme.models.model_config import family_of, pruned_config
from replaceme.models.model_record import ModelRecord
from replaceme.models.probed import PROPOSED
from replaceme.probing.describe import describe, tiny_of
from replaceme.probing.kinds import check_kinds
from replaceme.probing.unproved import Unproved
from replaceme.proving import probe
from replaceme.proving.proof import prove
from replaceme.surgery.fold import merge
from replaceme.transforms.transform import Transform

# blocks that end with a norm (of an encoder of text), experts in transposed stacks with biases, a shared expert in
# another layout, mixers alone, a sum of two modules times a factor, experts before a norm, a scalar for each block,
# blocks in a tuple, linear attention; several residual streams are in tests/test_several_streams.py
PROVED = {
    "mpnet": ("output.dense.weight",),
    "gpt_oss": ("mlp.experts.down_proj",),
    "llama4_text": ("feed_forward.shared_expert.down_proj.weight", "feed_forward.experts.down_proj"),
    "nemotron_h": ("mixer.out_proj.weight", "mixer.down_proj.weight", "mixer.o_proj.weight"),
    "granitemoehybrid": ("shared_mlp.output_linear.weight",),
    "flex_olmo": ("mlp.experts.*.down_proj.weight",),
    "gemma4_text": ("mlp.down_proj.weight",),
    "mpt": ("ffn.down_proj.weight",),
    "qwen3_5_text": ("mlp.down_proj.weight",),
}
REFUSED = {
    "jetmoe": "with mlp.output_linear.weight zero, 21% of what it adds is left",
    "rwkv": "no weights put out what it adds",
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch, tmp_path):
    """Let nothing that an earlier probe kept be read."""
    monkeypatch.setattr(probe, "KNOWN", {})
    monkeypatch.setattr(probe, "KEPT", tmp_path / "kept")
    (tmp_path / "kept").mkdir()


def config_of(model_type):
    config = AutoConfig.for_model(model_type, **probe_all.OWN.get(model_type, {})).to_dict()
    return with_defaults({**config, "model_type": model_type}, "m")


@pytest.mark.parametrize("model_type", PROVED)
def test_an_architecture_that_is_not_listed_is_found_and_proved(model_type):
    family = family_of(config_of(model_type), "m")
    assert set(PROVED[model_type]) <= set(family.fold)
    assert family.padded_positions is (model_type == "mpnet")


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_not_proved_is_refused_with_the_finding(model_type, refuses):
    with refuses(f"m: model_type '{model_type}' is not supported", REFUSED[model_type], "docs/models.md"):
        family_of(config_of(model_type), "m")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The tiny model of Helium, as the probe makes it: its folder, and the family that is to be proved."""
    folder = tmp_path_factory.mktemp("helium") / "tiny"
    config = config_of("helium")
    return folder, describe(config, tiny_of(config, "m"), folder).family


@pytest.mark.parametrize(
    ("wrong", "finding"),
    [
        ({"mlp_output": "self_attn"}, "loses something else than M"),
        ({"fold": ("self_attn.o_proj.weight",)}, "loses something else than M"),
        ({"fold": ("mlp.down_proj.weight", "self_attn.o_proj.weight")}, "loses something else than M"),
        ({"multiplier": 0.5, "scaled_by": "rms_norm_eps"}, "loses something else than M"),
    ],
)
def test_a_wrong_description_is_not_proved(wrong, finding, small, tmp_path, monkeypatch):
    folder, family = small
    monkeypatch.setitem(PROPOSED, "helium", replace(family, **wrong))
    with pytest.raises(Unproved, match=finding):
        prove(folder, tmp_path, PROPOSED["helium"])


def test_what_is_proved_is_used_recorded_and_kept_for_other_processes(small, tmp_path, monkeypatch):
    folder = shutil.copytree(small[0], tmp_path / "model")
    record = resolve(str(folder))
    assert record.probe["family"]["lists"] == [] and record.probe["proof"]["folded"] < 1e-5
    record.save(tmp_path / "model.json")
    assert ModelRecord.load(tmp_path / "model.json") == record
    assert record.provenance["probe"] == json.loads(json.dumps(record.probe))
    monkeypatch.setattr(probe, "KNOWN", {})
    monkeypatch.setattr(probe, "_probe", lambda *_: pytest.fail("it is known"))
    checkpoint = open_checkpoint(folder)
    merge(folder, cut_of([(2, 4)], 6), [identity()], tmp_path / "out", {})
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "out").num_blocks == 4 < checkpoint.num_blocks


def identity():
    return Transform(torch.eye(32, dtype=torch.float64), {"solver": "identity"})


def test_a_cut_after_which_another_block_would_be_of_another_kind(refuses, monkeypatch):
    """Jamba says which blocks attend by a period alone, and cannot run without any."""
    config = {**config_of("jamba"), "num_hidden_layers": 16}
    family = Family(fold=("feed_forward.down_proj.weight",), mlp_output="feed_forward", kinds=True, lists=())
    monkeypatch.setitem(PROPOSED, "jamba", family)
    check_kinds(config, family, [(1, 9)], "m")
    with refuses("m: without blocks [2, 3), block 3 would be of another kind", "take another cut"):
        check_kinds(config, family, [(2, 3)], "m")
    with refuses("m: without blocks [4, 16)", "transformers cannot make the model", "take another cut"):
        check_kinds(config, family, [(4, 16)], "m")


def test_lists_by_block_lose_the_removed_blocks(monkeypatch):
    """Whatever their names, and those of block numbers, from 0 or 1, and of settings by number too."""
    kinds = ["mamba", "moe", "attention", "mlp"]
    monkeypatch.setitem(PROPOSED, "nemotron_h", Family(lists=("layers_block_type",), kinds=True))
    config = {"model_type": "nemotron_h", "num_hidden_layers": 4, "layers_block_type": kinds}
    config |= {"full_attn_idxs": [0, 2], "num_dense_layers": 2, "per_layer_config": {"2": {"head_dim": 4}}}
    config |= {"ple_layer_ids": [1, 2, 4], "num_hash_layers": 3, "compress_ratios": [0, 4, 128, 4, 0]}
    assert pruned_config(config, [(1, 2)]) == {
        "model_type": "nemotron_h",
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "full_attn_idxs": [0, 1],
        "num_dense_layers": 1,
        "per_layer_config": {"1": {"head_dim": 4}},
        "ple_layer_ids": [1, 3],
        "num_hash_layers": 2,
        "compress_ratios": [0, 128, 4],
    }
