"""Neurons of removed blocks: the carrier computes them, which are chosen, what a folded model does with them."""

import json
from dataclasses import replace

import pytest
import tiny_families
import torch
from transformers import AutoModelForCausalLM

import replaceme
from replaceme.activations.capture import Wanted, capture
from replaceme.activations.open_model import load_model
from replaceme.activations.removed_neurons import Screen, neurons_of
from replaceme.calibration.tokens import tokens_from_texts
from replaceme.cli import main
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.placement import Regression
from replaceme.core.errors import ReplaceMeError
from replaceme.models.checkpoints import open_checkpoint


@pytest.mark.parametrize("variant", ["llama", "phi3", "gemma3_text", "gpt2", "opt", "cohere"])
def test_the_carrier_computes_what_neurons_of_a_block_would_in_its_place(variant):
    """The oracle: the modules of block 4, norm and MLP, run on what the norm of block 1 is given."""
    folder = tiny_families.source(variant)
    checkpoint, model = open_checkpoint(folder), load_model(folder, "float32", "cpu", False)
    family, blocks = checkpoint.family, checkpoint.family.block_modules(model)
    norm, other = (blocks[k].get_submodule(family.mlp_norm.rpartition(".")[0]) for k in (1, 4))
    seen = {}
    norm.register_forward_hook(lambda module, inputs, output: seen.update(y=inputs[0], x=output))
    family.down_projection(blocks[4]).register_forward_pre_hook(lambda module, inputs: seen.update(c=inputs[0]))
    with torch.no_grad():
        model(torch.arange(4, 40).reshape(2, 18))
        normed = other(seen["y"])
        if variant == "opt":  # whose MLP is no module
            seen["c"] = blocks[4].activation_fn(blocks[4].fc1(normed))
        else:
            blocks[4].mlp(normed)
        found = neurons_of(checkpoint, 4, 1).outputs(seen["x"])
    assert torch.allclose(found, seen["c"], atol=1e-5 * float(seen["c"].abs().max()))


def planted(model):
    """Let block 2 add to the stream by its MLP alone, and read what block 1, the carrier, reads."""
    layers = model.model.layers
    layers[1].mlp.down_proj.weight.zero_()
    layers[2].self_attn.o_proj.weight.zero_()


@pytest.fixture(scope="module")
def seen_by_the_carrier(make_llama):
    return make_llama(edit=planted)


def pruned(folder, out, texts, **fit):
    config = FitConfig(placement="down_proj", ridge_relative=1e-9, **fit)
    cut = CutConfig(start=2, blocks=1)
    return replaceme.prune(folder, cut=cut, fit=config, out=out, texts=texts, device="cpu", verify=False)["fit"]


def test_a_removed_mlp_that_the_carrier_can_compute_is_recovered(seen_by_the_carrier, texts, tmp_path):
    """With width enough; the saved model then predicts what the whole one does."""
    plain = pruned(seen_by_the_carrier, tmp_path / "plain", texts)
    found = pruned(seen_by_the_carrier, tmp_path / "found", texts, recycle=1.0, recycle_from="removed")
    assert found["residual"] < 1e-9 < 0.01 < plain["residual"]
    ids = torch.arange(4, 36)[None]
    with torch.no_grad():
        whole, short = (
            AutoModelForCausalLM.from_pretrained(one)(ids).logits for one in (seen_by_the_carrier, tmp_path / "found")
        )
    assert torch.allclose(whole, short, atol=1e-4 * float(whole.abs().max()))


def test_the_folded_model_computes_what_was_fitted(gemma, tokenizer, texts, tmp_path, brute_rows):
    """Where a norm follows the MLP."""
    fit = FitConfig(placement="down_proj", ridge_relative=1e-6, recycle=0.5, recycle_from="removed")
    out, cut = tmp_path / "out", CutConfig(blocks=2, start=3)
    record = replaceme.prune(gemma, cut=cut, fit=fit, out=out, texts=texts, device="cpu", verify=False)
    tokens = tokens_from_texts(texts, tokenizer, None, 128)
    hidden, outputs, _ = brute_rows(gemma, tokens, "float32")
    target, found = hidden[4] - hidden[2] + outputs[2], brute_rows(out, tokens, "float32")[1][2]
    residual = float((target - found).square().sum() / target.square().sum())
    assert record["fit"]["residual"] == pytest.approx(residual, rel=1e-3)
    assert by_steps(gemma, texts, tmp_path)["residual"] == pytest.approx(residual, rel=1e-3)


def by_steps(folder, texts, path):
    """The same by the steps of the workflow, over two shards."""

    def step(name, *words):
        out = path / name
        assert main([*map(str, words), "--out", str(out)]) == 0
        return out

    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    size = ("--samples", len(texts), "--tokens", 128)
    tokens = step("tokens.safetensors", "tokens", folder, "--dataset", path / "texts.jsonl", *size)
    cut = step("cut.json", "cut", folder, "--start", 3, "--blocks", 2)
    plain, fit = ("--placement", "down_proj"), ("--recycle", 0.5, "--recycle-from", "removed")

    def summed(name, *words):
        shards = [
            step(f"{name}-{k}", "gram", folder, tokens, cut, *plain, *words, "--shard", k, "--shards", 2)
            for k in range(2)
        ]
        return step(name, "sum", *shards)

    before = summed("before")
    chosen = step("chosen", "recycle", folder, before, *plain, *fit, "--tokens", tokens)
    after = summed("after", *fit, "--recycled", chosen)
    given = ("--statistics", after, "--recycled", chosen, "--tokens", tokens, "--ridge-relative", 1e-6)
    return json.loads((step("fit", "fit", folder, cut, *plain, *fit, *given) / "fit.json").read_text())


def test_scores_are_those_of_a_brute_force(llama, texts, tokenizer):
    """Of padded text, with weights, in batches; and own neurons of another activation are refused."""
    checkpoint, model = open_checkpoint(llama), load_model(llama, "float32", "cpu", False)
    regression, group, tokens = (
        Regression("down_proj", "inverse_energy"),
        (3, 5),
        tokens_from_texts(texts, tokenizer, None, 64),
    )
    own, pool = neurons_of(checkpoint, 2, 2), [neurons_of(checkpoint, block, 2) for block in (3, 4)]
    fitted = torch.randn(24, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    screen = Screen(group, replace(regression, recycle=0.5), pool, own, fitted)
    for activations in capture(model, checkpoint.family, tokens.batches(2), screen.wanted):
        screen.add(activations)
    wanted = Wanted(*(frozenset({2, 4}), frozenset({2}), frozenset({2}), frozenset({2})))
    [all_] = capture(model, checkpoint.family, tokens.batches(len(tokens)), wanted)
    states, mask = all_.hidden_states, all_.mask
    r = (states[4] - states[2] + all_.mlp_output[2])[mask].double()
    c = torch.cat([one.outputs(all_.mlp_input[2][mask]) for one in pool], 1).double()
    weight = 1 / r.square().sum(1)
    missed = r - all_.down_input[2][mask].double() @ fitted
    scores = (c.T @ (weight[:, None] * missed)).square().sum(1) / (weight[:, None] * c.square()).sum(0)
    assert torch.equal(screen.shortlist(7).neurons, scores.topk(7).indices.sort().values)
    wrong = Screen(group, replace(regression, recycle=0.5), pool, replace(own, activation="relu"), fitted)
    with pytest.raises(ReplaceMeError, match=r"more than projections and relu.*use a fit without neurons of removed"):
        wrong.add(all_)


def test_what_cannot_be_put_there_is_refused(make_llama):
    """A gain of 0, shifts that no bias takes, and no share."""

    def edit(model):
        model.model.layers[1].post_attention_layernorm.weight[3] = 0

    with pytest.raises(ReplaceMeError, match="1 gains of its post_attention_layernorm"):
        neurons_of(open_checkpoint(make_llama(edit=edit)), 2, 1)
    shifted = open_checkpoint(tiny_families.source("stablelm"))
    named = replace(shifted, family=replace(shifted.family, mlp_norm="post_attention_layernorm.weight"))
    with pytest.raises(ReplaceMeError, match="no bias to take them; use a fit without neurons of removed blocks"):
        neurons_of(named, 4, 1)
    with pytest.raises(ValueError, match="recycle_from needs recycle"):
        FitConfig(placement="down_proj", recycle_from="removed")
