"""Captured tensors equal the outputs of the blocks, before the final norm, and no needless block runs."""

from functools import partial

import pytest
import torch

from replaceme.activations.capture import Activations, Wanted, capture
from replaceme.activations.targets import rows_of, wanted_by
from replaceme.calibration.tokens import Tokens
from replaceme.config.placement import Regression

WANTED = partial(wanted_by, Regression())
EVERY = Wanted(frozenset(range(6)), frozenset(range(6)))


def rows(model, family, tokens, wanted=EVERY, batch_size=5):
    """Return unmasked rows of everything captured, [blocks, tokens, hidden] for the hidden states and for the MLP
    outputs.
    """
    found = list(capture(model, family, tokens.batches(batch_size), wanted))
    hidden = [torch.cat([one.hidden_states[k][one.mask] for one in found]) for k in sorted(wanted.hidden_states)]
    outputs = [torch.cat([one.mlp_output[k][one.mask] for one in found]) for k in sorted(wanted.mlp_output)]
    return torch.stack(hidden), torch.stack(outputs) if outputs else None


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_equals_plain_transformers(source, request, side, make_tokens, blocks_of, brute_rows):
    folder, tokens = request.getfixturevalue(source), make_tokens(side=side)
    hidden, outputs = rows(*blocks_of(folder, "float64"), tokens)
    expected_hidden, expected_outputs, _ = brute_rows(folder, tokens)
    # 1e-15 as a rule; norms round to float32 whatever the model's type, and a rounding that tips over shows
    assert (hidden - expected_hidden).abs().max() <= 1e-6 * expected_hidden.abs().max()
    assert (outputs - expected_outputs).abs().max() <= 1e-6 * expected_outputs.abs().max()


def test_the_last_block_is_taken_before_the_final_norm(llama, make_tokens, blocks_of):
    model, family = blocks_of(llama)
    tokens = make_tokens(samples=1)
    (found,) = capture(model, family, [tokens], EVERY)
    final = model(tokens.input_ids, attention_mask=tokens.mask.long()).last_hidden_state
    assert torch.allclose(model.norm(found.hidden_states[5]), final, rtol=1e-5, atol=1e-5)
    assert (found.hidden_states[5] - final).abs().max() > 0.1


@pytest.mark.parametrize("last", range(6))
def test_no_block_runs_after_the_last_one_needed(llama, make_tokens, blocks_of, last):
    model, family = blocks_of(llama)
    ran = []
    hooks = [layer.register_forward_pre_hook(lambda m, i, k=k: ran.append(k)) for k, layer in enumerate(model.layers)]
    normed = model.norm.register_forward_pre_hook(lambda m, i: ran.append("norm"))
    rows(model, family, make_tokens(samples=3), Wanted(frozenset({0, last})))
    assert ran == list(range(last + 1))
    [hook.remove() for hook in [*hooks, normed]]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "all hooks are gone"


def test_keeps_only_what_is_asked_for(llama, make_tokens, blocks_of):
    (found,) = capture(*blocks_of(llama), [make_tokens(samples=3)], WANTED([(2, 5)]))
    assert found.hidden_states.keys() == {1, 4} and found.mlp_output.keys() == {1}


def test_the_terms_of_the_target_are_the_end_the_carrier_and_its_mlp_output():
    a, b, m = (torch.randn(2, 3, 4, dtype=torch.bfloat16) for _ in range(3))
    found = Activations(torch.ones(2, 3, dtype=torch.bool), {1: a, 3: b}, {1: m})
    rows, terms = rows_of(Regression(), found, 2, 4)
    assert rows is m and all(term is expected for term, expected in zip(terms, (b, a, m), strict=True))


def test_the_residual_stream_before_the_mlp_is_the_state_less_M(llama, make_tokens, blocks_of):
    """Y = hidden_states - M, on which the choice after the fit and the fold rely."""
    model, family = blocks_of(llama)
    seen = []
    model.layers[2].post_attention_layernorm.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    (found,) = capture(model, family, [make_tokens(samples=2)], EVERY)
    assert torch.allclose(found.hidden_states[2] - found.mlp_output[2], seen[0], rtol=0, atol=1e-5)


def test_columns_of_padding_are_not_computed(llama, make_tokens, blocks_of):
    (found,) = capture(*blocks_of(llama), [make_tokens(samples=3, extra=30)], EVERY)
    assert found.mask.shape == (3, 20) and found.hidden_states[0].shape == (3, 20, 16)


def test_a_batch_of_padding_only_is_refused(llama, blocks_of, refuses):
    nothing = Tokens(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.bool))
    with refuses("padding only"):
        list(capture(*blocks_of(llama), [nothing], EVERY))


@pytest.mark.parametrize("bad", [0, 2, 3])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize("wanted", [EVERY, WANTED([(1, 6)]), WANTED([(3, 4)])], ids=["all", "[1, 6)", "[3, 4)"])
def test_nan_or_infinity_names_the_first_bad_block(llama, make_tokens, blocks_of, refuses, bad, poison, wanted):
    model, family = blocks_of(llama)
    model.layers[bad].mlp.down_proj.weight[3, 5] = poison
    with refuses(f"NaN or infinity in the output of block {bad} ", "float32"):
        list(capture(model, family, [make_tokens(samples=3)], wanted))


def test_nan_after_the_last_block_needed_is_not_looked_at(llama, make_tokens, blocks_of):
    model, family = blocks_of(llama)
    model.layers[4].mlp.down_proj.weight.fill_(float("nan"))
    hidden, _ = rows(model, family, make_tokens(samples=3), WANTED([(1, 4)]))
    assert torch.isfinite(hidden).all()


def test_two_runs_give_the_same_bits(llama, make_tokens, blocks_of):
    one, two = (rows(*blocks_of(llama), make_tokens()) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
