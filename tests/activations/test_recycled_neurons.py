"""Recycled neurons: what they pass on, which they are, and that a fit with them is what the folded model computes."""

import pytest
import torch

import replaceme
from replaceme.activations.recycled_neurons import STRENGTH, Recycled, choose_neurons, load_recycled, save_recycled
from replaceme.activations.statistics import Statistics
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.core.errors import ReplaceMeError

HIDDEN, WIDE, TOKENS = 8, 24, 4000


def toy(seed=0):
    """Return rows a [tokens, intermediate] of a gated MLP, its input x with a constant direction, and a target of
    both.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = normal(TOKENS, HIDDEN)
    x[:, 0] = 3 + 0.02 * x[:, 0]
    gate, up = normal(WIDE, HIDDEN), normal(WIDE, HIDDEN)
    up[:4] *= 1e-3  # the least used neurons
    a = torch.nn.functional.silu(x @ gate.T) * (x @ up.T)
    return a, x, a @ normal(WIDE, HIDDEN) + 3 * x @ normal(HIDDEN, HIDDEN)


def sums(a, x, r):
    statistics = Statistics.zeros(HIDDEN, width=WIDE + HIDDEN)
    statistics.add_batch(torch.cat([a, x], 1), r)
    return statistics


def missed(rows, r):
    best = torch.linalg.lstsq(rows, r).solution
    return float((rows @ best - r).square().sum() / r.square().sum())


def test_the_least_used_neurons_pass_on_what_is_missing():
    a, x, r = toy()
    found = choose_neurons(sums(a, x, r), 4 / WIDE, "silu", torch.float64)
    assert found.neurons.tolist() == [0, 1, 2, 3]
    assert torch.allclose(x @ found.gate[0], torch.full((TOKENS,), STRENGTH, dtype=torch.float64), rtol=0.1)
    changed = found.apply(a, x)
    assert torch.equal(changed[:, 4:], a[:, 4:])
    assert changed[:, :4].square().mean() == pytest.approx(float(a.square().mean()), rel=0.2), "the size of the others"
    before, joint, after = missed(a, r), missed(torch.cat([a, x], 1), r), missed(changed, r)
    assert joint < 1e-9 < 0.02 < before and after < before / 3


def test_as_many_as_channels_give_all_that_is_linear():
    a, x, r = toy()
    found = choose_neurons(sums(a, x, r), 1.0, "silu", torch.float64)
    assert len(found.neurons) == HIDDEN and found.up.shape == (HIDDEN, HIDDEN)
    linear = found.apply(a, x)[:, found.neurons]
    assert missed(linear, x) < 2e-3, "x itself can be had from them"


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "no such", ""])
def test_an_activation_that_saturates_is_refused(activation):
    with pytest.raises(ReplaceMeError, match="does not become the identity"):
        choose_neurons(sums(*toy()), 0.1, activation, torch.float64)


@pytest.mark.parametrize("silent", ["neurons", "channels", "both"])
def test_rows_of_zeros_are_one_line(silent):
    a, x, r = toy()
    given = (a * (silent == "channels"), x * (silent == "neurons"), r)
    with pytest.raises(ReplaceMeError, match="zero in every token; use other or more calibration text"):
        choose_neurons(sums(*given), 0.1, "silu", torch.float64)


def test_saved_and_loaded(tmp_path):
    found = choose_neurons(sums(*toy()), 0.2, "gelu_pytorch_tanh", torch.bfloat16)
    assert found.gate.dtype == found.up.dtype == torch.bfloat16
    other = choose_neurons(sums(*toy(1)), 0.2, "gelu_pytorch_tanh", torch.bfloat16)
    save_recycled(tmp_path / "x.safetensors", [other, found], {"groups": [[1, 2], [3, 4]]})
    loaded, metadata = load_recycled(tmp_path / "x.safetensors")
    assert metadata == {"groups": [[1, 2], [3, 4]]} and len(loaded) == 2
    assert all(torch.equal(loaded[1].tensors()[name], tensor) for name, tensor in found.tensors().items())
    assert loaded[0].activation == found.activation


@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_the_folded_model_computes_what_was_fitted(request, source, texts, tokenizer, tmp_path, brute_rows):
    from replaceme.calibration.tokens import tokens_from_texts

    folder = request.getfixturevalue(source)
    cut, given = CutConfig(blocks=2, start=3), {"texts": texts, "device": "cpu", "verify": False}
    residuals = {}
    for name, fit in (("plain", {}), ("recycled", {"recycle": 0.25})):
        config = FitConfig(placement="down_proj", ridge_relative=1e-6, **fit)
        record = replaceme.prune(folder, cut=cut, fit=config, out=tmp_path / name, **given)
        tokens = tokens_from_texts(texts, tokenizer, None, 128)
        hidden, outputs, _ = brute_rows(folder, tokens, "float32")
        target = hidden[4] - hidden[2] + outputs[2]
        found = brute_rows(tmp_path / name, tokens, "float32")[1][2]
        residuals[name] = float((target - found).square().sum() / target.square().sum())
        assert record["fit"]["residual"] == pytest.approx(residuals[name], rel=1e-3)


def test_recycling_needs_the_down_projection():
    with pytest.raises(ValueError, match="drop recycle, or take down_proj"):
        FitConfig(recycle=0.1)


def test_apply_leaves_its_argument_alone():
    a = torch.ones(2, 3)
    Recycled(torch.tensor([1]), torch.ones(1, 4), torch.ones(1, 4), "silu").apply(a, torch.ones(2, 4))
    assert torch.equal(a, torch.ones(2, 3))
