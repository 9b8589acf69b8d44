"""Cuts that begin between the attention and the MLP of a block and end so in another."""

import json
from dataclasses import replace

import family_checks
import pytest
import tiny_families
import torch
from family_checks import EXACT, HALVES
from given import cut_of
from tiny_families import VARIANTS
from transformers import AutoModelForCausalLM

import replaceme
from replaceme.activations.capture import Wanted, capture
from replaceme.activations.divergence import log_probabilities
from replaceme.activations.gather import gather_groups
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.placement import Regression
from replaceme.core.cut_record import Cut
from replaceme.core.places import amount, kept_halves
from replaceme.cuts.after_fit import candidates_of, measure_candidates
from replaceme.cuts.choose import choose
from replaceme.cuts.distances import measure
from replaceme.methods.registry import check_together
from replaceme.models.checkpoints import open_checkpoint, read_config, resolve
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import check_cut, check_halves, family_of, pruned_config
from replaceme.models.part_costs import PartCosts
from replaceme.surgery.fold import merge
from replaceme.surgery.lineage import lineage_of
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_identity, fit_least_squares
from replaceme.transforms.transform import Transform

# without a middle: attention and MLP side by side, or not known
WHOLE = {"bloom", "cohere", "cohere2", "falcon", "falcon, as 11B", "gpt_neox", "gpt_neox, one after the other", "gptj",
         "phi", "stablelm, side by side", "vit", "deit", "dinov2", "dinov2, with SwiGLU", "clip_vision_model",
         "siglip_vision_model", "clip", "siglip"}  # fmt: skip
CUT = (1.5, 3.5)


@pytest.mark.parametrize("variant", [one for one in VARIANTS if one not in WHOLE])
def test_the_saved_model_is_the_original_without_the_halves(variant):
    assert family_checks.middle_difference(variant) < EXACT
    assert family_checks.halves_difference(variant, "mlp") < EXACT
    if variant in ("qwen2", "gemma3_text", "gpt2", "granite"):
        assert family_checks.halves_difference(variant, "down_proj") < EXACT


@pytest.mark.parametrize("variant", sorted(WHOLE))
def test_blocks_without_a_middle_are_refused(variant, refuses):
    config = read_config(tiny_families.source(variant))
    with refuses("m: a cut cannot begin in the middle of its blocks", "cut whole blocks"):
        check_halves(family_of(config, "m"), "m")
    with refuses("cannot begin in the middle"):
        found = tiny_families.transforms(variant, "mlp", groups=[(1, 2), (4, 5)])
        merge(tiny_families.source(variant), cut_of(HALVES, 6), found, "unwritten", {})


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_nothing_is_left_of_what_was_removed(request, name, tmp_path, make_tokens):
    """In float64: the logits of the saved model are those of blocks called half by half."""
    folder = request.getfixturevalue(name)
    merge(folder, cut_of([CUT], 6), [fit_identity(hidden_size=16)], tmp_path / "out", {})
    whole, short = (
        AutoModelForCausalLM.from_pretrained(one, dtype=torch.float64).eval() for one in (folder, tmp_path / "out")
    )
    after = "post_feedforward_layernorm" if name == "gemma" else "mlp"
    behind = "post_attention_layernorm" if name == "gemma" else "self_attn"

    def nothing(module, inputs, output):
        return (
            tuple(0 * one if k == 0 else one for k, one in enumerate(output)) if type(output) is tuple else 0 * output
        )

    for block, part in ((1, after), (2, behind), (2, after), (3, behind)):
        getattr(whole.model.layers[block], part).register_forward_hook(nothing)
    ids = make_tokens(2).input_ids
    with torch.no_grad():
        assert (whole(ids).logits - short(ids).logits).abs().max() < 1e-12
    assert len(short.model.layers) == 4
    before, made = (open_checkpoint(one) for one in (folder, tmp_path / "out"))
    for part, block in (("self_attn.o_proj", 1), ("mlp.up_proj", 3)):
        old = before.tensor(f"model.layers.{block}.{part}.weight")
        assert torch.equal(made.tensor(f"model.layers.1.{part}.weight"), old)


@pytest.mark.parametrize("placement", ["mlp", "down_proj"])
def test_halves_that_are_linear_in_the_heads_outputs_are_replaced_exactly(llama, blocks_of, make_tokens, placement):
    """MLP 1 is made a linear map of what the output projection of attention 1 is given, the rest of the cut nothing."""
    model, family = blocks_of(llama, "float64")
    blocks, tokens, seen = family.block_modules(model), make_tokens(), {}
    planted = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out = blocks[1].self_attn.o_proj
    rows = "output" if placement == "mlp" else "input"
    out.register_forward_hook(lambda m, given, output: seen.update(input=given[0], output=output))
    blocks[1].mlp.register_forward_hook(lambda m, given, output: seen[rows] @ planted)
    for module in (blocks[2].self_attn.o_proj, blocks[2].mlp, blocks[3].self_attn.o_proj):
        module.register_forward_hook(lambda m, given, output: 0 * output)
    states = Wanted(frozenset({3}))
    expected = next(capture(model, family, [tokens], states))
    sums = gather_groups(model, family, tokens.batches(5), [CUT], Regression(placement))
    found = fit_least_squares(sums[0])
    own = torch.eye(16).double() if placement == "mlp" else out.weight.detach().T
    assert found.report["residual"] < 1e-12
    assert (found.matrix - (own + planted)).abs().max() < 1e-6
    with shortened(model, family, [CUT], [Transform(found.matrix, found.report, placement)]):
        short = next(capture(model, family, [tokens], states))
    difference = short.hidden_states[3] - expected.hidden_states[3]
    assert difference[tokens.mask].abs().max() < 1e-5, "the map is applied in float32"


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_candidates_by_halves_lie_between_those_of_whole_blocks(request, name, make_tokens):
    folder = request.getfixturevalue(name)
    tokens, held_out = make_tokens(samples=30), make_tokens(samples=5, seed=1)
    model = load_causal_model(folder, "float32", "cpu")
    family = family_of(read_config(folder), "m")
    found = measure_candidates(model, family, tokens, [2], 7, {"": held_out}, halves=True)
    assert [one["start"] for one in found] == [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4]
    whole = measure_candidates(model, family, tokens, [2], 7, {"": held_out})
    assert found[1::2] == [pytest.approx(one) for one in whole]
    record = resolve(str(folder))
    chosen = choose(CutConfig(blocks=2, halves=True, metric="kl"), record, candidates=found)
    assert chosen.groups[0][0] == min(found, key=lambda one: one["kl"])["start"]
    distances = measure(model.base_model, family, tokens, 7, halves=True)
    by_distance = choose(CutConfig(blocks=2, halves=True, metric="cosine"), record, distances)
    assert [one["cosine"] for one in by_distance.candidates] == pytest.approx(
        [one["cosine"] for one in found], rel=1e-4
    )


def test_a_cut_by_halves_from_text_to_checkpoint(llama, texts, tmp_path):
    cut, fit = CutConfig(blocks=2, start=1.5), FitConfig(placement="down_proj", ridge_relative=0.01)
    made = replaceme.prune(llama, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", verify=False)
    card = (tmp_path / "out/README.md").read_text()
    assert made["cut"]["groups"] == [[1.5, 3.5]] and made["cut"]["blocks"] == 2
    assert "blocks [1.5, 3.5) (of 0 .. 5" in card and ".5: after the attention of a block" in card
    assert "folded into the attention of block 1" in card
    again = lineage_of(resolve(str(tmp_path / "out")), cut_of([[1, 2]], 4), {})
    assert again["groups"] == [[1, 4]], "attention 1 and MLP 3 were a block"
    halves = lineage_of(resolve(str(tmp_path / "out")), cut_of([[2.5, 3.5]], 4), {})
    assert halves["groups"] == [[1.5, 3.5], [4.5, 5.5]]
    saved = json.loads(json.dumps(Cut([CUT], 2, 6, "given").content))
    assert Cut.of(saved).groups == [CUT]


def test_a_map_in_an_attention_is_trained_end_to_end(llama, texts, tmp_path):
    fit = FitConfig(objective="kl", placement="down_proj", ridge_relative=0.1, kl_steps=10, kl_sequences=4)
    cut = CutConfig(blocks=2, start=1.5)
    made = replaceme.prune(llama, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", verify=False)["fit"]
    assert made["kl"] < made["kl_start"] and made["solver"] == "kl"


@pytest.mark.parametrize(
    ("fit", "what"),
    [
        ({"placement": "block"}, "placement block"),
        ({"transform": "collapse"}, "transform collapse"),
        ({"placement": "down_proj", "recycle": 0.1}, "recycle"),
    ],
)
def test_what_takes_whole_blocks(fit, what, refuses):
    with refuses(f"start 1.5: {what} takes whole blocks; change either"):
        check_together(CutConfig(blocks=2, start=1.5), FitConfig(**fit))
    check_together(CutConfig(blocks=2, start=1), FitConfig(**fit))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": 1.25}, "1.25 is no place to begin a cut: 1 or 1.5 is"),
        ({"start": 0}, "leaves no carrier"),
        ({"halves": True, "start": 2}, "drop halves"),
        ({"halves": True, "search": "independent"}, "takes whole blocks"),
        ({"halves": True, "metric": "taylor"}, "of whole blocks"),
    ],
)
def test_cuts_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(blocks=2, **given)
    assert CutConfig(blocks=2, start=2.0).start == 2 and CutConfig(blocks=2, start=0.5).in_middle


def test_entries_by_block_go_with_their_half(refuses):
    """Of six blocks, MLPs 1 and 2 and attentions 2 and 3 go: block 1 is attention 1 and MLP 3."""
    assert kept_halves(6, [CUT]) == [(0, 0), (1, 3), (4, 4), (5, 5)]
    config = {"model_type": "qwen2_moe", "num_hidden_layers": 6, "layer_types": list("abcdef"), "mlp_only_layers": [3]}
    found = pruned_config(config, [CUT])
    assert found["layer_types"] == list("abef") and found["mlp_only_layers"] == [1]
    with refuses("per_layer_of_some_kind differs between the blocks that cut [1.5, 3.5) makes one of"):
        pruned_config({**config, "per_layer_of_some_kind": {"1": 7}}, [CUT])


SUBLAYERS = [(1, 1.5), (2.5, 3.5), (4.5, 5)]  # attention 1; MLP 2 and attention 3, which make a block; MLP 4


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "opt"])
def test_a_saved_model_without_single_sublayers(request, name, tmp_path):
    """Its blocks lack an attention or an MLP, by the code it brings, and it generates the same with a cache."""
    folder = request.getfixturevalue(name) if name in ("llama", "gemma") else tiny_families.source(name)
    config, cut = read_config(folder), cut_of(SUBLAYERS, 6)
    family = family_of(config, name)
    assert kept_halves(6, SUBLAYERS) == [(0, 0), (None, 1), (2, 3), (4, None), (5, 5)] and not cut.pairs_up
    gain = None if family.post_norm is None else 0.7
    matrix = torch.eye(16).double() + 0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).double()
    found = [Transform(matrix, {"solver": "least_squares"}, gain=gain) for _ in SUBLAYERS]
    merge(folder, cut, found, tmp_path / "out", {})
    model, short = (load_causal_model(one, "float32", "cpu") for one in (folder, tmp_path / "out"))
    ids = torch.randint(4, 60, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), shortened(model.base_model, family, SUBLAYERS, found):
        expected = model(ids).logits
    with torch.no_grad():
        assert family_checks.difference(short(ids).logits, expected) < EXACT
    plain, cached = (short.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use) for use in (False, True))
    assert torch.equal(plain, cached)
    whole = sum(one.numel() for one in model.parameters())
    assert sum(one.numel() for one in short.parameters()) < whole


def test_sublayers_go_by_what_they_cost_in_the_unit(llama, make_tokens):
    """An MLP has nothing in the cache and stays; an attention of which much is saved goes first, whatever it loses."""
    record, tokens = resolve(str(llama)), make_tokens(6)
    model = load_causal_model(llama, "float32", "cpu")
    family = family_of(read_config(llama), "m")
    cut = CutConfig(ratio=0.5, of="cache", search="sublayers", metric="kl_without")
    record = replace(record, costs=PartCosts("cache", 6.0, [1.0] * 6, attentions=[1.0] * 6, mlps=[0.0] * 6))
    found = candidates_of(cut, record, model, family, tokens, 4)["candidates"]
    assert {one["start"] for one in found} == {1, 2, 3, 4, 5} and all(one["cache"] == 1.0 for one in found)
    chosen = choose(cut, record, candidates=found)
    assert len(chosen.parts) == 3 and chosen.budget == {"of": "cache", "ratio": 0.5, "saved": 0.5}
    worst = max((one for one in found if one["round"] == 0), key=lambda one: one["kl_without"])["start"]
    each = [1e6 if k == worst else 1.0 for k in range(6)]
    record = replace(record, costs=PartCosts("cache", 6e6, [1e6] * 6, attentions=each, mlps=[0.0] * 6))
    cut = CutConfig(blocks=1, of="cache", search="sublayers", metric="kl_without")
    found = candidates_of(cut, record, model, family, tokens, 4)["candidates"]
    assert choose(cut, record, candidates=found).parts == [(worst, worst + 0.5)]


def test_sublayers_go_one_by_one_where_a_parameter_costs_least(llama, make_tokens, refuses):
    record, tokens = resolve(str(llama)), make_tokens(6)
    model = load_causal_model(llama, "float32", "cpu")
    family = family_of(read_config(llama), "m")
    cut = CutConfig(blocks=2, search="sublayers", metric="kl_without", keep_last=1)
    found = candidates_of(cut, record, model, family, tokens, 4)["candidates"]
    chosen = choose(cut, record, candidates=found)
    sizes = {(one["start"], one["end"]): one["parameters"] for one in found}
    assert sum(sizes.values()) == 4 * record.block_parameters[0], "of blocks 1 to 4"
    removed = sum(sizes[part] for part in chosen.parts)
    budget = 2 * record.block_parameters[0]
    left = [size for part, size in sizes.items() if part not in chosen.parts]
    assert all(abs(removed + size - budget) >= abs(removed - budget) for size in left), "no other comes nearer"
    assert chosen.blocks == len(chosen.parts) / 2
    gone, before = [], 0.0
    for number, one in enumerate(one for one in found if one["kept"]):
        tried = [other for other in found if other["round"] == number]
        assert one == min(tried, key=lambda other: (other["kl_without"] - before) / other["parameters"])
        gone, before = [*gone, (one["start"], one["end"])], one["kl_without"]
        with shortened(model.base_model, family, gone, [None] * len(gone)):
            short = log_probabilities(model, tokens)
        whole = log_probabilities(model, tokens)
        assert before == pytest.approx(float((whole.exp() * (whole - short)).sum(-1).mean()), rel=1e-3)
    with refuses("not those of single sublayers by parameters"):
        choose(cut, record, candidates=[{"start": 1, "end": 2, "kl": 1.0}])
    with refuses("m: single sublayers of mixtures of experts"):
        check_cut(read_config(tiny_families.source("mixtral")), cut, "m")


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([(2, 5)], "3 blocks"),
        ([(2, 3)], "1 block"),
        ([(2.5, 5.5)], "3 blocks"),
        ([(1, 1.5), (4, 4.5)], "2 attentions"),
        ([(1, 1.5), (3, 5)], "3 attentions and 2 MLPs"),
        ([(1, 1.5), (4.5, 5)], "1 attention and 1 MLP"),
    ],
)
def test_what_a_cut_removes_in_words(groups, expected):
    """Parts are named where what stays makes no whole blocks."""
    assert amount(groups, 8) == expected
