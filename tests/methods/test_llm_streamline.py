"""LLM-Streamline: the block learns what a plain training loop learns, and an interruption changes no bit of it."""

from dataclasses import replace

import pytest
import torch
from family_checks import EXACT, difference, loaded, outputs
from given import cut_of
from tiny_families import samples, source

from replaceme.config.fits import fit_config
from replaceme.fitting.passes import Passes
from replaceme.methods.fitting import fit_method
from replaceme.methods.registry import check_section, running
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import load_base_model, load_causal_model
from replaceme.models.model_config import family_of
from replaceme.transforms.resume import State

CUT = cut_of([[2, 4]], 6)
SETTINGS = {"learning_rate": 0.01, "epochs": 3, "batch_tokens": 60}


def without_attention(block):
    """`x + mlp(norm(x))` of the block's own norm and MLP, written out."""
    del block.self_attn, block.input_layernorm
    block.forward = lambda states, **_: states + block.mlp(block.post_attention_layernorm(states))


def loop(folder, tokens, start, end, epochs, size, lr, network):
    """The same training, one sequence at a time, by plain transformers in float64."""
    model, teacher = (load_base_model(folder, "float64", "cpu") for _ in range(2))
    block = model.layers[start - 1].requires_grad_(True)
    if network == "mlp":
        without_attention(block)
    optimiser = torch.optim.AdamW(block.parameters(), lr=lr)
    for later in range(start, 6):
        model.layers[later].forward = lambda hidden_states, **_: hidden_states
    model.norm = torch.nn.Identity()
    kept = {}
    teacher.layers[end - 1].register_forward_hook(lambda m, args, output: kept.__setitem__("after", output))
    losses = []
    batches = [(tokens.input_ids[k : k + size], tokens.mask[k : k + size]) for k in range(0, len(tokens.mask), size)]
    for epoch in range(epochs):
        order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(epoch)).tolist()
        total, count = 0.0, 0
        for number in order:
            errors = []
            for ids, mask in zip(*batches[number], strict=True):
                with torch.no_grad():
                    teacher(ids[mask][None])
                errors.append((model(ids[mask][None]).last_hidden_state - kept["after"])[0].square().mean(1))
            errors = torch.cat(errors)
            optimiser.zero_grad()
            errors.mean().backward()
            optimiser.step()
            total, count = total + errors.sum().item(), count + len(errors)
        losses.append(total / count)
    return dict(block.named_parameters()), losses


@pytest.mark.parametrize(
    ("start", "end", "side", "network"), [(1, 3, "left", "layer"), (3, 6, "right", "layer"), (2, 5, "left", "mlp")]
)
def test_it_learns_what_a_plain_loop_learns(llama, make_tokens, fitted, start, end, side, network):
    tokens = make_tokens(samples=10, longest=20, side=side)
    cut = cut_of([[start, end]], 6)
    _, found = fitted(llama, tokens, "llm_streamline", cut, **SETTINGS, network=network)
    expected, losses = loop(llama, tokens, start, end, 3, 3, 0.01, network)
    assert found.report["losses"][0] == pytest.approx(losses, rel=1e-4)
    assert losses[-1] < losses[0]
    assert found.tensors.keys() == {f"{start - 1}.{name}" for name in expected}
    for name, parameter in expected.items():
        # a step of Adam is as long for a tiny gradient, where float32 and float64 may disagree
        difference = (found.tensors[f"{start - 1}.{name}"] - parameter).abs()
        assert float(difference.detach().mean()) < 2e-3


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 5, 12])
def test_an_interruption_changes_no_bit(llama, make_tokens, make_passes, tmp_path, monkeypatch, stop):
    """Two groups of four batches and two epochs: in the middle of an epoch, between epochs, groups, in the second."""
    tokens, record = make_tokens(samples=10, longest=20), resolve(str(llama))
    cut = cut_of([[1, 2], [3, 5]], 6)
    config = fit_config(method="llm_streamline", **{**SETTINGS, "epochs": 2})
    passes = make_passes(llama, tokens)
    whole = fit_method(passes, config, cut, record)

    class Stopping(State):
        writes = 0

        def write(self, content):
            super().write(content)
            self.writes += 1
            if self.writes == stop:
                raise Interrupted

    path = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        fit_method(replace(passes, state=Stopping(path, "this", seconds=0)), config, cut, record)
    again = fit_method(replace(passes, state=State(path, "this", seconds=0)), config, cut, record)
    assert again.report == whole.report
    assert all(torch.equal(again.tensors[name], one) for name, one in whole.tensors.items())


def test_the_checkpoint_is_plain_and_the_rest_of_it_untouched(sharded, make_tokens, fitted, write_found, tmp_path):
    record, found = fitted(sharded, make_tokens(samples=6), "llm_streamline", **SETTINGS)
    write_found(record, CUT, found, tmp_path / "out")
    before, after = (load_causal_model(one, "float32", "cpu") for one in (sharded, tmp_path / "out"))
    assert type(after).__name__ == "LlamaForCausalLM" and len(after.model.layers) == 4
    for new, old in enumerate([0, 1, 4, 5]):
        for name, parameter in after.model.layers[new].named_parameters():
            expected = (
                found.tensors[f"1.{name}"] if new == 1 else dict(before.model.layers[old].named_parameters())[name]
            )
            assert torch.equal(parameter, expected)
    assert torch.equal(after.lm_head.weight, before.lm_head.weight)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_a_network_without_attention_is_written_as_one(model_type, write_found, tmp_path):
    """Two of them, the rest of the checkpoint untouched; the cache of keys knows of layers that have none."""
    folder, tokens = source(model_type), samples(model_type)
    cut = cut_of([[2, 3], [5, 6]], 6)
    record, model = resolve(str(folder)), loaded(folder)
    family = family_of(read_config(folder), model_type)
    passes = Passes(model.base_model, family, tokens, 2, "float32")
    fit = fit_config(method="llm_streamline", network="mlp", **SETTINGS)
    found = fit_method(passes, fit, cut, record)
    write_found(record, cut, found, tmp_path / "out")
    assert fit.own_code and read_config(tmp_path / "out")["without_attention"] == ["model.layers.1", "model.layers.3"]
    after = loaded(tmp_path / "out")
    assert [hasattr(block, "self_attn") for block in after.model.layers] == [True, False, True, False]
    with running(model.base_model, family, cut, found):
        expected = outputs(model, model_type)
    assert difference(outputs(after, model_type), expected) < 5 * EXACT
    ids = tokens.input_ids[:1]
    with torch.no_grad():
        whole = [after.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cached) for cached in (True, False)]
    assert torch.equal(*whole)


def test_the_first_block_of_each_kind_keeps_its_attention(llama, make_tokens, fitted, refuses):
    cut = cut_of([[1, 3]], 6)
    with refuses("network mlp would leave block 0 without attention", "`network: layer`"):
        fitted(llama, make_tokens(samples=4), "llm_streamline", cut, network="mlp")
    windows = source("qwen2")  # from block 3 on
    with refuses("network mlp would leave block 3 without attention"):
        fitted(windows, samples("qwen2"), "llm_streamline", cut_of([[4, 6]], 6), network="mlp")
    with refuses("m: network mlp is for llama, mistral", "use `network: layer`"):
        config = {"model_type": "gemma2", "hidden_size": 8, "num_hidden_layers": 2}
        check_section(config, fit_config(method="llm_streamline", network="mlp"), "m")


def test_a_loss_that_is_not_finite_is_an_error(llama, make_tokens, fitted, refuses):
    with refuses("the loss of epoch", "lower `learning_rate`"):
        fitted(llama, make_tokens(samples=6), "llm_streamline", **{**SETTINGS, "learning_rate": 1e30})
