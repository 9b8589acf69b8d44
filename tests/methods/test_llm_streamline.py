"""LLM-Streamline: the block learns what a plain training loop learns, and an interruption changes no bit of it."""

from dataclasses import replace

import pytest
import torch

from replaceme.config import FitConfig
from replaceme.loading import load_base_model, load_causal_model
from replaceme.methods.fitting import fit_method
from replaceme.transforms import State

CUT = {"groups": [[2, 4]], "blocks": 2, "num_blocks": 6, "metric": "given", "position": None}
SETTINGS = {"learning_rate": 0.01, "epochs": 3, "batch_tokens": 60}


def loop(folder, tokens, start, end, epochs, size, lr):
    """The same training, one sequence at a time, by plain transformers in float64."""
    model, teacher = (load_base_model(folder, "float64", "cpu") for _ in range(2))
    block = model.layers[start - 1].requires_grad_(True)
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


@pytest.mark.parametrize(("start", "end", "side"), [(1, 3, "left"), (3, 6, "right")])
def test_it_learns_what_a_plain_loop_learns(llama, make_tokens, fitted, start, end, side):
    tokens = make_tokens(samples=10, longest=20, side=side)
    cut = {**CUT, "groups": [[start, end]], "blocks": end - start}
    _, found = fitted(llama, tokens, "llm_streamline", cut, **SETTINGS)
    expected, losses = loop(llama, tokens, start, end, 3, 3, 0.01)
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
    from replaceme.checkpoints import resolve

    tokens, record = make_tokens(samples=10, longest=20), resolve(str(llama))
    cut = {**CUT, "groups": [[1, 2], [3, 5]], "blocks": 3}
    config = FitConfig(method="llm_streamline", **{**SETTINGS, "epochs": 2})
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


def test_a_loss_that_is_not_finite_is_an_error(llama, make_tokens, fitted, refuses):
    with refuses("the loss of epoch", "lower `learning_rate`"):
        fitted(llama, make_tokens(samples=6), "llm_streamline", **{**SETTINGS, "learning_rate": 1e30})
