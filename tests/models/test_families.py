"""Every family: what family_checks demands, and the table of docs/models.md."""

import ast
import importlib.util
import json
import shutil
from pathlib import Path

import family_checks
import pytest
import tiny_families
import torch
from given import cut_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from replaceme.methods import llm_streamline
from replaceme.methods.found import Found
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.families import FAMILIES, SEQUENTIAL
from replaceme.models.model_config import family_of, pruned_config
from replaceme.placements.mlp import fold
from replaceme.surgery.fold import merge

MIXTURE = {"model_type": "qwen3_moe", "num_hidden_layers": 6, "hidden_size": 16}


@pytest.mark.parametrize("variant", tiny_families.VARIANTS)
def test_family(variant, monkeypatch):
    monkeypatch.setattr(
        "replaceme.models.unloaded_tensors._not_in_class", lambda *_: pytest.fail("ordinary names need no class")
    )
    found = family_checks.row(variant)
    assert "NO" not in found.values(), found


def test_the_table_of_the_docs_is_what_was_found(tmp_path):
    page = tmp_path / "models.md"
    page.write_text(family_checks.DOCS.read_text())
    family_checks.write(page)
    assert page.read_text() == family_checks.DOCS.read_text(), "python tests/family_checks.py writes it"


def test_a_family_is_one_entry(monkeypatch):
    """An entry says more of an architecture than a probe finds: gates, placements."""
    monkeypatch.setitem(FAMILIES, "helium", SEQUENTIAL)
    monkeypatch.setitem(tiny_families.OWN, "helium", {"head_dim": 8})
    assert "NO" not in family_checks.row("helium").values()


# what transformers' models do with the number of a block, and what makes up for it when the block gets another
KNOWN_USES = {
    "config.layer_types[layer_idx]": "models.PER_BLOCK_LISTS",
    "self.config.layer_types[layer_idx]": "models.PER_BLOCK_LISTS",
    "self.config.layer_types[i]": "models.PER_BLOCK_LISTS",
    "config.no_rope_layers[layer_idx]": "models.PER_BLOCK_LISTS",
    "layer_idx not in config.mlp_only_layers": "models.pruned_config",
    "layer_idx + 1": "models.pruned_config",  # of decoder_sparse_step
    "layer_idx >= config.first_k_dense_replace": "models.pruned_config",
    "self.layer_idx + 1": "renumbering",  # of scale_attn_by_inverse_layer_idx
    "past_key_values.is_updated[self.layer_idx]": "the cache",
    "curr_past_key_values.layers[self.layer_idx]": "the cache",
    "layer_idx is None": "a warning",
    "i * slices": "no block: slices of slow_but_exact",
    "i + 1": "no block: slices of slow_but_exact",
}
NUMBERS = {"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "block_id"}


def uses_of_numbers(code):
    """The expressions of a modelling file that compute, choose or compare with the number of a block."""
    tree = ast.parse(code)
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For) and isinstance(node.target, ast.Tuple)]
    counted = {one.target.elts[0].id for one in loops if ast.unparse(one.iter).startswith("enumerate(self.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.Compare | ast.Subscript | ast.BoolOp | ast.IfExp | ast.UnaryOp):
            names = {getattr(child, "id", getattr(child, "attr", None)) for child in ast.iter_child_nodes(node)}
            if names & (NUMBERS | counted):
                yield ast.unparse(node)


def test_every_use_of_a_blocks_number_in_transformers_is_known():
    """A version of transformers that has one more fails here, rather than in a model that is wrong."""
    found = set()
    for model_type in FAMILIES:
        module = type(AutoConfig.for_model(model_type)).__module__.replace("configuration_", "modeling_")
        found |= set(uses_of_numbers(Path(importlib.util.find_spec(module).origin).read_text()))
    assert found - set(KNOWN_USES) == set()


def test_queries_of_moved_blocks_make_up_for_their_number():
    """Block 3 becomes block 1, and its scores are divided by 2 in place of 4."""
    variant = "gpt2, attention divided by the block's number"
    before, after = (open_checkpoint(folder) for folder in (tiny_families.source(variant), moved(variant)))
    for part in ("attn.c_attn.weight", "attn.c_attn.bias"):
        old, new = before.tensor(f"transformer.h.3.{part}"), after.tensor(f"transformer.h.1.{part}")
        assert torch.equal(new[..., :16], old[..., :16] / 2)
        assert torch.equal(new[..., 16:], old[..., 16:])
    cut = cut_of(tiny_families.GROUPS, tiny_families.BLOCKS)
    trained = llm_streamline.content(before, cut, Found("llm_streamline", {}, {"network": "layer"}))
    assert set(trained.changes.edits) == {f"transformer.h.3.attn.c_attn.{part}" for part in ("weight", "bias")}


def moved(variant):
    return family_checks.shorter(variant, tiny_families.transforms(variant, "mlp"))


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_checkpoints_saved_without_the_prefix_of_the_base_model(model_type, tmp_path):
    """As GPT-2 and BLOOM lie on the Hub: `h.0.` for `transformer.h.0.`."""
    source = tiny_families.source(model_type)
    bare = Path(shutil.copytree(source, tmp_path / "bare"))
    tensors = load_file(bare / "model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, bare / "model.safetensors"
    )
    found = tiny_families.transforms(model_type, "mlp")
    cut = cut_of(tiny_families.GROUPS, tiny_families.BLOCKS)
    merge(bare, cut, found, tmp_path / "out", {})
    merge(source, cut, found, tmp_path / "other", {})
    one, other = (family_checks.loaded(tmp_path / name) for name in ("out", "other"))
    assert torch.equal(family_checks.outputs(one, model_type), family_checks.outputs(other, model_type))


def test_stacked_experts_are_folded_one_by_one():
    generator = torch.Generator().manual_seed(0)
    experts, transform = torch.randn(3, 4, 5, generator=generator), torch.randn(4, 4, generator=generator)
    assert torch.equal(fold(experts, transform), torch.stack([fold(one, transform) for one in experts]))


def test_experts_may_be_stacked_in_the_checkpoint(tmp_path):
    source = Path(shutil.copytree(tiny_families.source("qwen3_moe"), tmp_path / "stacked"))
    tensors = load_file(source / "model.safetensors")
    for block in range(tiny_families.BLOCKS):
        names = [f"model.layers.{block}.mlp.experts.{expert}.down_proj.weight" for expert in range(4)]
        if names[0] in tensors:
            stacked = torch.stack([tensors.pop(name) for name in names])
            tensors[f"model.layers.{block}.mlp.experts.down_proj"] = stacked
    save_file(tensors, source / "model.safetensors")
    found = tiny_families.transforms("qwen3_moe", "mlp")
    merge(source, cut_of(tiny_families.GROUPS, tiny_families.BLOCKS), found, tmp_path / "out", {})
    separate = open_checkpoint(family_checks.shorter("qwen3_moe", found))
    folded = open_checkpoint(tmp_path / "out").tensor("model.layers.0.mlp.experts.down_proj")
    expected = [separate.tensor(f"model.layers.0.mlp.experts.{expert}.down_proj.weight") for expert in range(4)]
    assert torch.equal(folded, torch.stack(expected))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"mlp_only_layers": [1, 4]}, {"decoder_sparse_step": 1, "mlp_only_layers": [2]}),
        ({"decoder_sparse_step": 2}, {"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}),
        ({"first_k_dense_replace": 2}, {"first_k_dense_replace": 1}),
        ({"first_k_dense_replace": 5}, {"first_k_dense_replace": 3}),
    ],
)
def test_dense_blocks_of_a_mixture_stay_dense(given, expected):
    """Without blocks 1 and 2 of six: 0, 3, 4 and 5 are left, as 0 to 3."""
    pruned = pruned_config({**MIXTURE, **given}, [(1, 3)])
    assert pruned == {**MIXTURE, "num_hidden_layers": 4, **expected}


def test_what_no_map_can_be_folded_into(refuses):
    with refuses("moe_layer_freq is 2"):
        pruned_config({**MIXTURE, "moe_layer_freq": 2}, [(1, 3)])
    opt = {"model_type": "opt", "num_hidden_layers": 6, "hidden_size": 16}
    family_of(opt, "m")
    with refuses("m: do_layer_norm_before is False", "normalise the residual stream"):
        family_of({**opt, "do_layer_norm_before": False}, "m")
    for variant, fit, message in (
        ("mixtral", {"placement": "down_proj"}, "mixtures of experts"),
        ("gpt2", {"placement": "down_proj", "recycle": "input"}, "no gate"),
        ("mixtral", {"recycle": "removed"}, "mixtures of experts"),
    ):
        with refuses(message, "drop it" if "recycle" in fit else "placement mlp"):
            family_checks.check_fit(family_checks.read_config(tiny_families.source(variant)), variant, **fit)


@pytest.mark.parametrize("variant", ["gpt2", "olmo2", "vit"])
def test_a_factor_upstream_is_refused_where_blocks_read_the_stream_otherwise(variant, refuses):
    with refuses("placement upstream is"):
        family_checks.check_fit(family_checks.read_config(tiny_families.source(variant)), variant, "upstream")


def test_a_checkpoint_without_the_weight_of_its_family_is_refused(tmp_path, refuses):
    source = Path(shutil.copytree(tiny_families.source("gpt2"), tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    save_file({k.replace("c_proj", "elsewhere"): v for k, v in tensors.items()}, source / "model.safetensors")
    cut = cut_of(tiny_families.GROUPS, tiny_families.BLOCKS)
    with refuses("no tensor transformer.h.0.mlp.c_proj.weight"):
        merge(source, cut, tiny_families.transforms("gpt2", "mlp"), tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    assert json.loads((source / "config.json").read_text())["n_layer"] == 6
