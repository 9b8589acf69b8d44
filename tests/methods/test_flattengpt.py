"""FlattenGPT: what one block can do for two is found exactly, and the rest is what the sums say."""

import pytest
import torch
from family_checks import EXACT, difference, loaded, outputs
from given import cut_of
from tiny_families import samples, source

from replaceme.activations.divergence import apart, log_probabilities
from replaceme.config.fits import fit_config
from replaceme.fitting.passes import Passes
from replaceme.methods import flattengpt
from replaceme.methods.fitting import fit_method
from replaceme.methods.flattengpt import Merging
from replaceme.methods.registry import check_method, running
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.model_config import family_of

PAIR = cut_of([[2, 3]], 6)
LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2}
SHARED = {"num_attention_heads": 4, "num_key_value_heads": 2}


def idle(block, *parts):
    for part in parts:
        block.get_submodule(part).weight.zero_()


def carrier_does_nothing(model):
    idle(model.model.layers[1], "self_attn.o_proj", "mlp.down_proj")


def one_attends_and_the_other_computes(model):
    idle(model.model.layers[1], "mlp.down_proj")
    idle(model.model.layers[2], "self_attn.o_proj")


def fit(folder, text, cut=PAIR, **options):
    model = loaded(folder)
    family = family_of(read_config(folder), str(folder))
    passes = Passes(model.base_model, family, text, 4, "float32", headed=model)
    return model, family, fit_method(passes, fit_config(method="flattengpt", **options), cut, resolve(str(folder)))


@pytest.mark.parametrize("edit", [carrier_does_nothing, one_attends_and_the_other_computes])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"], ids=["shared keys", "biases"])
def test_two_blocks_with_the_work_of_one_become_that_one(edit, model_type, make_llama, tmp_path):
    """Heads and neurons of block 2, which has other gains, and biases, do in block 1 what they did."""
    folder = make_llama(**SHARED) if model_type == "llama" else source(model_type)
    model = loaded(folder)
    with torch.no_grad():
        edit(model)
    model.save_pretrained(tmp_path)
    model, family, found = fit(tmp_path, samples("llama"))
    before = outputs(model, model_type)
    with running(model.base_model, family, PAIR, found):
        assert difference(outputs(model, model_type), before) < 20 * EXACT
    heads, neurons = found.report["attention_kept"], found.report["kept"]
    assert neurons == [0, 24] and heads[edit is carrier_does_nothing] == sum(heads)


def test_all_that_is_side_by_side_leaves_less_than_a_dropped_block(make_llama, make_tokens, monkeypatch):
    """With nothing pruned the fit is ahead of the old weights of both; of fewer heads and neurons it is behind."""
    folder, text = make_llama(**SHARED), make_tokens(samples=24)
    _, _, pruned = fit(folder, text)

    class Whole(Merging):
        def _fitted(self, sums, origin, kept, whose):
            found = super()._fitted(sums, origin, torch.arange(len(origin)), whose)
            few = super()._fitted(sums, origin, kept, whose)
            seen.append((found.report, few.report))
            return few

    seen = []
    monkeypatch.setattr(flattengpt, "Merging", Whole)
    fit(folder, text)
    assert len(seen) == 2
    for whole, few in seen:
        assert whole["residual"] < whole["residual_side_by_side"] and whole["residual"] < whole["residual_dropped"]
        assert whole["residual"] < few["residual"] < few["residual_dropped"]
    assert seen[1][1]["residual"] == pruned.report["residual"], "the same bits again"
    assert sum(pruned.report["kept"]) == 24 and sum(pruned.report["attention_kept"]) == 16
    assert not [name for name in pruned.report if name.endswith("identity")], "of heads' outputs it says nothing"


def test_a_shortlist_bounds_what_others_give(llama, make_tokens):
    text = make_tokens(samples=24)
    _, _, found = fit(llama, text, shortlist=0.25)
    _, _, whole = fit(llama, text)
    assert found.report["kept"][1] <= 6 < whole.report["kept"][1] and sum(found.report["kept"]) == 24
    assert whole.report["residual"] < found.report["residual"] < found.report["residual_dropped"]
    assert found.report["residual_dropped"] == pytest.approx(whole.report["residual_dropped"])


def test_a_sequential_estimation_fits_the_model_merged_so_far(llama, make_tokens, write_found, tmp_path):
    text, cut = make_tokens(samples=12), cut_of([[1, 2], [3, 4]], 6)
    _, _, found = fit(llama, text, cut, estimation="sequential")
    _, _, first = fit(llama, text, cut_of([[1, 2]], 6))
    write_found(resolve(str(llama)), cut_of([[1, 2]], 6), first, tmp_path / "out")
    _, _, second = fit(tmp_path / "out", text, cut_of([[2, 3]], 5))
    for name, one in first.tensors.items():
        assert torch.equal(found.tensors[name], one)
    for name, one in second.tensors.items():
        assert torch.equal(found.tensors[name.replace("1.", "2.", 1)], one)


def test_training_goes_on_from_least_squares(llama, make_tokens):
    """The divergence of the report is that of the model as it runs afterwards, on the sequences held out."""
    text = make_tokens(samples=51)
    model, family, found = fit(llama, text, objective="kl", kl_steps=20, kl_learning_rate=0.003)
    _, _, start = fit(llama, text)
    report = found.report
    assert report["kl"] < report["kl_start"] and report["solver"] == "kl" and "residual" not in report
    changed = [name for name, one in start.tensors.items() if not torch.equal(found.tensors[name], one)]
    assert changed == ["1.mlp.down_proj.weight"]
    held_out = text[torch.tensor([48, 49, 50])]
    with torch.no_grad():
        whole = log_probabilities(model, held_out)
        with running(model.base_model, family, PAIR, found):
            short = log_probabilities(model, held_out)
    divergence = float(apart(whole, short).mean())
    assert divergence == pytest.approx(report["kl"], rel=1e-3)


def test_what_no_one_block_can_do_is_refused(refuses):
    with refuses("blocks 1 .. 2 have attentions of several kinds (full_attention, sliding_attention)"):
        fit(source("qwen3"), samples("qwen3"))
    with refuses("m: method flattengpt is not for this model", "biases (attention_bias)"):
        check_method({**LLAMA, "attention_bias": True}, "flattengpt", "m")
