"""LLM-Pruner: groups and importance against the loss itself, sizes, and both kinds of checkpoints."""

import pytest
import torch
from family_checks import EXACT, difference, loaded, outputs
from given import cut_of
from tiny_families import BLOCKS, samples, source

from replaceme.activations.language_loss import mean_loss
from replaceme.config.fits import FitConfig, fit_config
from replaceme.fitting.passes import Passes
from replaceme.methods.fitting import fit_method
from replaceme.methods.groups import coupled_groups
from replaceme.methods.llm_pruner import counts_for, importances, roots_of
from replaceme.methods.registry import ROTATABLE, check_section, running
from replaceme.models.checkpoints import open_checkpoint, read_config, resolve
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of

CUT = cut_of([[2, 4]], 6)


@pytest.fixture
def pruned(fitted):
    """A function that fits the method: (record, what was found)."""

    def fit(folder, tokens, cut=CUT, **options):
        return fitted(folder, tokens, "llm_pruner", cut, **options)

    return fit


@pytest.mark.parametrize("model_type", ROTATABLE)
def test_groups_are_those_of_the_architecture(model_type):
    """Two heads of queries share one of the keys and values, an MLP channel is a row of two layers and a column."""
    model = loaded(source(model_type))
    passes = Passes(model.base_model, family_of(read_config(source(model_type)), ""), samples(model_type), 2, "float32")
    groups = coupled_groups(passes, 2, roots_of(model.config))
    found = {kind: {(one.layer, one.axis): one.indices.tolist() for one in sides} for kind, sides in groups.items()}
    shared, own = [list(range(16))], [list(range(8))]
    assert found["heads"] == {
        ("self_attn.v_proj", 0): own,
        ("self_attn.k_proj", 0): own,
        ("self_attn.q_proj", 0): shared,
        ("self_attn.o_proj", 1): shared,
    }
    channels = [[k] for k in range(24)]
    assert found["channels"] == {
        ("mlp.up_proj", 0): channels,
        ("mlp.gate_proj", 0): channels,
        ("mlp.down_proj", 1): channels,
    }
    assert not any(one.requires_grad for one in model.parameters())


def test_several_heads_that_share_keys_each(make_llama, make_tokens, make_passes):
    """Four heads of queries, two of keys: the first two are with the first."""
    folder = make_llama(num_attention_heads=4, num_key_value_heads=2)
    passes = make_passes(folder, make_tokens(samples=4))
    groups = coupled_groups(passes, 1, roots_of(passes.model.config))
    found = {one.layer: one.indices.tolist() for one in groups["heads"]}
    assert found["self_attn.o_proj"] == found["self_attn.q_proj"] == [list(range(8)), list(range(8, 16))]
    assert found["self_attn.k_proj"] == [list(range(4)), list(range(4, 8))]


def test_importance_is_what_the_loss_says(llama, make_tokens, make_passes):
    """Sum of |w dL/dw|, the derivatives of the loss of all tokens by autograd in float64, padding left out."""
    tokens = make_tokens(samples=6, longest=12)
    passes = make_passes(llama, tokens)
    groups = coupled_groups(passes, 1, roots_of(passes.model.config))
    found = importances(passes, groups, [1, 3])
    model = load_causal_model(llama, "float64", "cpu").requires_grad_(True)
    total, count = 0.0, 0
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        ids = ids[mask]
        logits = model(ids[None]).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")
        count += len(ids) - 1
    (total / count).backward()
    for block in (1, 3):
        mlp, attention = model.model.layers[block].mlp, model.model.layers[block].self_attn
        change = {name: (one.weight * one.weight.grad).abs() for name, one in
                  [*mlp.named_children(), *attention.named_children()] if hasattr(one, "weight")}  # fmt: skip
        channels = change["up_proj"].sum(1) + change["gate_proj"].sum(1) + change["down_proj"].sum(0)
        assert torch.allclose(found[block]["channels"], channels.detach(), rtol=1e-3, atol=1e-9)
        whole = sum(float(change[name].detach().sum()) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        assert float(found[block]["heads"].sum()) == pytest.approx(whole, rel=1e-3)


def test_the_library_scores_groups_alike(llama, make_tokens, make_passes):
    """torch-pruning's own Taylor importance of the MLP channels, from the same gradients."""
    import torch_pruning

    passes = make_passes(llama, make_tokens(samples=6))
    found = importances(passes, coupled_groups(passes, 1, roots_of(passes.model.config)), [1])[1]["channels"]
    block = passes.model.layers[1].requires_grad_(True)
    from replaceme.cuts.taylor import loss_gradients

    layers = [block.mlp.up_proj, block.mlp.gate_proj, block.mlp.down_proj]
    gradients = loss_gradients(passes.headed, passes.tokens, 4, [one.weight for one in layers])
    for layer in layers:
        layer.weight.grad = gradients[layer.weight]
    graph = torch_pruning.DependencyGraph()
    block.mlp.requires_grad_(True)
    graph.build_dependency(block.mlp, torch.randn(1, 3, 16), verbose=False)
    group = graph.get_pruning_group(block.mlp.up_proj, torch_pruning.prune_linear_out_channels, list(range(24)))
    score = torch_pruning.importance.GroupTaylorImportance(group_reduction="sum", normalizer=None)
    assert torch.allclose(score(group).double(), found, rtol=1e-5)


def test_the_least_important_go_and_the_first_and_last_blocks_stay(
    llama, make_tokens, write_found, tmp_path, make_passes, pruned
):
    tokens, cut = make_tokens(samples=6), cut_of([[2, 3]], 6)
    record, found = pruned(llama, tokens, cut, whole_first=2, whole_last=1)
    passes = make_passes(llama, tokens)
    groups = coupled_groups(passes, 2, roots_of(passes.model.config))
    scores = importances(passes, groups, [2, 3, 4])
    assert {name.partition(".")[0] for name in found.tensors} == {"2", "3", "4"}
    for block in (2, 3, 4):
        kept = found.tensors[f"{block}.mlp.down_proj.columns"]
        least = scores[block]["channels"].sort(descending=True).indices[: found.report["channels"]].sort().values
        assert torch.equal(kept, least) and torch.equal(kept, found.tensors[f"{block}.mlp.up_proj.rows"])
    write_found(record, cut, found, tmp_path / "out")
    before, after = open_checkpoint(llama), open_checkpoint(tmp_path / "out", separate=True)
    assert read_config(tmp_path / "out")["model_type"] == "replaceme_llama"
    for name in before.tensors:
        block = before.family.block_of(name)
        if block in (2, 3, 4) and name.endswith("down_proj.weight"):
            kept = found.tensors[f"{block}.mlp.down_proj.columns"]
            assert torch.equal(after.tensor(name), before.tensor(name)[:, kept])
        elif block not in (2, 3, 4) or "norm" in name:
            assert torch.equal(after.tensor(name), before.tensor(name))


def test_taking_out_the_least_important_costs_less_than_the_most_important(llama, make_tokens, make_passes, pruned):
    tokens = make_tokens(samples=12)
    _, found = pruned(llama, tokens)
    passes = make_passes(llama, tokens)
    whole = mean_loss(passes.headed, tokens)
    with running(passes.model, passes.family, CUT, found):
        chosen = mean_loss(passes.headed, tokens)
    width = passes.model.config.intermediate_size
    for name, kept in found.tensors.items():
        if ".mlp." in name:
            gone = torch.tensor(sorted(set(range(width)) - set(kept.tolist())))
            found.tensors[name] = torch.cat([gone, kept])[: len(kept)].sort().values
    with running(passes.model, passes.family, CUT, found):
        opposite = mean_loss(passes.headed, tokens)
    assert abs(chosen - whole) < abs(opposite - whole)


@pytest.mark.parametrize("model_type", ROTATABLE)
def test_all_blocks_alike_are_a_plain_checkpoint(model_type, write_found, tmp_path):
    folder = source(model_type)
    fit = fit_config(method="llm_pruner", whole_first=0, whole_last=0)
    cut = cut_of([[2, 4]], BLOCKS)
    record = resolve(str(folder))
    model = loaded(folder)
    passes = Passes(
        model.base_model, family_of(read_config(folder), ""), samples(model_type), 2, "float32", headed=model
    )
    found = fit_method(passes, fit, cut, record)
    write_found(record, cut, found, tmp_path / "out")
    assert not fit.own_code and read_config(tmp_path / "out")["model_type"] == model_type
    after = loaded(tmp_path / "out")
    assert type(after) is type(model) and len(after.base_model.layers) == BLOCKS
    assert after.num_parameters() <= record.parameters - sum(record.block_parameters[2:4])
    with running(passes.model, passes.family, cut, found):
        expected = outputs(model, model_type)
    assert difference(outputs(after, model_type), expected) < 5 * EXACT


@pytest.mark.parametrize(("share", "heads"), [(0.1, 2), (0.3, 1), (0.6, 1)])
def test_the_counts_are_the_largest_that_fit(make_llama, make_tokens, share, heads, make_passes):
    folder = make_llama(num_attention_heads=4, num_key_value_heads=2)
    passes = make_passes(folder, make_tokens(samples=4))
    block = passes.model.layers[1]
    groups = coupled_groups(passes, 1, roots_of(passes.model.config))
    layers = [one for one in block.modules() if isinstance(one, torch.nn.Linear)]
    whole = sum(one.weight.numel() for one in layers)
    counts = counts_for(block, groups, share * whole)
    hidden, head = 16, 4
    per_head, per_channel = head * hidden * (2 + 2 + 2), 3 * hidden
    left = counts["heads"] * per_head + counts["channels"] * per_channel
    assert counts["heads"] == heads
    assert left <= (1 - share) * whole < left + per_channel


def test_heads_that_no_channels_make_up_for_go_all_the_same(make_llama, make_tokens, make_passes):
    """Heads of a size of their own, 32 where the hidden size is 16: one of two is more than is asked for."""
    passes = make_passes(make_llama(num_attention_heads=4, num_key_value_heads=2, head_dim=32), make_tokens(samples=4))
    block = passes.model.layers[1]
    groups = coupled_groups(passes, 1, roots_of(passes.model.config))
    head, channel = 16 * 32 * 6, 3 * 16
    assert counts_for(block, groups, head / 2) == {"heads": 1, "channels": 24}, "all channels stay"
    assert counts_for(block, groups, 4 * channel) == {"heads": 2, "channels": 20}, "channels where they suffice"


def test_as_many_heads_stay_as_the_architecture_takes(make_llama, make_tokens, pruned, write_found, tmp_path):
    """Llama takes heads that divide its hidden size, 16: of 8 the nearest to two thirds would be 5."""
    folder, tokens = make_llama(num_attention_heads=8, num_key_value_heads=8), make_tokens(samples=4)
    record, found = pruned(folder, tokens, whole_first=0, whole_last=0)
    assert found.report["heads"] == 4
    write_found(record, CUT, found, tmp_path / "out")
    after = loaded(tmp_path / "out")
    assert after.num_parameters() <= record.parameters - sum(record.block_parameters[2:4])


def test_a_config_that_transformers_refuses_is_not_written(
    make_llama, make_tokens, pruned, write_found, tmp_path, refuses
):
    folder = make_llama(num_attention_heads=8, num_key_value_heads=8)
    record, found = pruned(folder, make_tokens(samples=4), whole_first=0, whole_last=0)
    found.report["heads"] = 3
    with refuses("as llm_pruner leaves its config.json", "The hidden size (16) is not a multiple"):
        write_found(record, CUT, found, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_done_is_said(llama, make_tokens, refuses, pruned):
    tokens = make_tokens(samples=4)
    with refuses("all 6 blocks are first or last ones", "lower `whole_first` or `whole_last`"):
        pruned(llama, tokens, whole_first=4, whole_last=2)
    with refuses("no number of heads and channels", "cut fewer"):
        pruned(llama, tokens, cut_of([[1, 6]], 6))
    with pytest.raises(ValueError, match="method llm_pruner\nestimation\n  Extra inputs are not permitted"):
        fit_config(method="llm_pruner", estimation="sequential")
    with pytest.raises(ValueError, match="method replaceme\nwhole_first\n  Extra inputs are not permitted"):
        FitConfig(whole_first=2)
    with refuses("what goes with a head or a channel is known in llama, mistral"):
        config = {"model_type": "gemma2", "hidden_size": 8, "num_hidden_layers": 2}
        check_section(config, fit_config(method="llm_pruner"), "m")
