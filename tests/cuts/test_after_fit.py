"""Post-fit metrics of candidates against brute force, of one size and of several, and what predictions lose."""

import weakref

import pytest
import torch

from replaceme.activations import language_loss, repeated
from replaceme.activations.capture import capture
from replaceme.activations.statistics import Statistics
from replaceme.calibration.tokens import Tokens
from replaceme.cuts.after_fit import measure_candidates, split
from replaceme.models.families import SANDWICH, SEQUENTIAL
from replaceme.models.loading import load_base_model, load_causal_model
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.gains import Gain


def mean_cosine_distance(a, b):
    return sum(1 - float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("blocks", [1, 3, 5])
def test_candidates_equal_brute_force(llama, make_tokens, blocks_of, brute_rows, blocks, side):
    tokens = make_tokens(samples=30, side=side)
    hidden, outputs, _ = brute_rows(llama, tokens)
    found = measure_candidates(*blocks_of(llama, "float64"), tokens, [blocks], 7)
    assert [(one["start"], one["end"]) for one in found] == [(s, s + blocks) for s in range(1, 7 - blocks)]
    for one in found:
        m, state, goal = outputs[one["start"] - 1], hidden[one["start"] - 1], hidden[one["end"] - 1]
        y = state - m
        target = goal - y
        best = torch.linalg.lstsq(m, target).solution
        expected = {
            "residual": float((m @ best - target).square().sum() / target.square().sum()),
            "residual_identity": float((m - target).square().sum() / target.square().sum()),
            "cosine_after_fit": mean_cosine_distance(y + m @ best, goal),
            "cosine": mean_cosine_distance(state, goal),
        }
        for name, value in expected.items():
            assert one[name] == pytest.approx(value, rel=1e-7), name
        assert one["residual"] < one["residual_identity"]
        assert abs(one["cosine"] - one["cosine_after_fit"]) > 1e-3


def test_more_blocks_than_the_model_has_are_refused_before_a_forward_pass(llama, make_tokens, blocks_of, refuses):
    model, family = blocks_of(llama)
    model.register_forward_pre_hook(lambda *_: pytest.fail("a forward pass ran"))
    with refuses("cannot remove 6 of 6 blocks"):
        measure_candidates(model, family, make_tokens(), [6], 4)


def test_two_runs_give_the_same_numbers(llama, make_tokens, blocks_of):
    one, two = (measure_candidates(*blocks_of(llama), make_tokens(), [2], 5) for _ in range(2))
    assert one == two


@pytest.mark.parametrize(("kept", "runs"), [(0, 6 + 6), (2, 6 + 4), (6, 6)])
def test_a_second_pass_runs_only_what_memory_had_no_room_for(llama, make_tokens, blocks_of, monkeypatch, kept, runs):
    """Room for some of six batches: the numbers are those of passes that keep nothing."""
    model, family = blocks_of(llama)
    monkeypatch.setattr(repeated, "_bytes", lambda batch: 4)
    found = []
    for room in (0, kept):
        sums = 8 * 3 * 16**2  # a Gram, a cross term and a map
        monkeypatch.setattr(repeated, "free_memory", lambda device, free=sums + 16 * room + 1: free)
        ran: list[int] = []
        hook = model.register_forward_pre_hook(lambda *_, ran=ran: ran.append(1))
        found.append(measure_candidates(model, family, make_tokens(samples=30), [5], 5))
        hook.remove()
    assert found[0] == found[1]
    assert len(ran) == runs


def test_nothing_of_the_first_pass_is_held_while_loss_and_kl_are_measured(llama, make_tokens, monkeypatch):
    seen = []

    def watched(*given, **named):
        for activations in capture(*given, **named):
            seen.append(weakref.ref(activations))
            yield activations

    monkeypatch.setattr(repeated, "capture", watched)
    model, held = load_causal_model(llama, "float32", "cpu"), []
    model.register_forward_hook(lambda *_: held.append(sum(one() is not None for one in seen)))
    held_out = make_tokens(samples=2, seed=1)
    measure_candidates(model, SEQUENTIAL, make_tokens(samples=30), [5], 5, {"": held_out})
    assert len(seen) == 6 and held == [0, 0], "all batches were kept for the cosines, and run once"


def test_too_few_tokens_to_tell_candidates_apart(llama, make_tokens, refuses):
    model = load_base_model(llama, "float32", "cpu")
    with refuses("for a hidden size of 16", "every candidate would fit them"):
        measure_candidates(model, SEQUENTIAL, make_tokens(samples=1, longest=12), [2], 4)


def brute_predictions(model, tokens):
    """Log-probabilities and next tokens, sequence by sequence, without padding."""
    found = []
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        with torch.inference_mode():
            found.append((model(ids[mask][None]).logits[0].double().log_softmax(-1), ids[mask][1:]))
    return found


def brute_loss(predictions):
    losses = [-float(log_p[k, token]) for log_p, ids in predictions for k, token in enumerate(ids)]
    return sum(losses) / len(losses)


def brute_divergence(whole, other):
    found = torch.cat([(p.exp() * (p - q)).sum(-1) for (p, _), (q, _) in zip(whole, other, strict=True)])
    return float(found.mean())


@pytest.mark.parametrize(("name", "family"), [("llama", SEQUENTIAL), ("gemma", SANDWICH)])
def test_loss_and_kl_are_those_of_the_shortened_model(request, make_tokens, brute_rows, name, family, monkeypatch):
    """In batches of two sequences; with a norm after the MLP, all values are those of the map behind it."""
    folder = request.getfixturevalue(name)
    tokens, held_out = make_tokens(samples=30), make_tokens(samples=5, seed=1, side="left")
    model = load_causal_model(folder, "float32", "cpu")
    monkeypatch.setattr(language_loss, "LOGITS", 2 * model.config.vocab_size * held_out.input_ids.shape[1])
    whole, passes = brute_predictions(model, held_out), []
    model.register_forward_hook(lambda *_: passes.append(1))
    found = measure_candidates(model, family, tokens, [2], 7, {"": held_out, "-on": tokens[:1]})
    assert len(passes) == (3 + 1) * (1 + 4), "the whole model and each candidate, once a batch of each text"
    assert len({one["kl"] for one in found}) == len({one["loss-on"] for one in found}) == len(found) == 4
    hidden, outputs, _ = brute_rows(folder, tokens)
    for one in found[1:3]:
        m, state, goal = (
            x[k].float() for x, k in ((outputs, one["start"] - 1), (hidden, one["start"] - 1), (hidden, one["end"] - 1))
        )
        statistics = Statistics.zeros(16)
        statistics.add_batch(m, (goal, state, m))
        transform = fit_least_squares(statistics)
        if family.post_norm is not None:
            gain = Gain(transform)
            gain.add(m, goal - state + m)
            transform = gain.transform()
        predicted = state - m + transform.apply(m)
        assert one["cosine_after_fit"] == pytest.approx(mean_cosine_distance(predicted, goal), rel=1e-4)
        with shortened(model.base_model, family, [(one["start"], one["end"])], [transform]):
            short = brute_predictions(model, held_out)
        assert one["loss"] == pytest.approx(brute_loss(short) - brute_loss(whole), rel=1e-3, abs=1e-4)
        assert one["kl"] == pytest.approx(brute_divergence(whole, short), rel=1e-3)


def test_several_sizes_at_once_are_each_alone(llama, make_tokens, blocks_of):
    model, family = blocks_of(llama, "float64")
    tokens = make_tokens(samples=30)
    together = measure_candidates(model, family, tokens, [1, 2, 4], 7)
    alone = [one for size in (1, 2, 4) for one in measure_candidates(model, family, tokens, [size], 7)]
    assert [(one["start"], one["end"]) for one in together] == [(one["start"], one["end"]) for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(
    ("there", "samples", "fitted", "held"), [(100, 64, 64, 16), (64, 64, 52, 12), (10, None, 8, 2), (2, 64, 1, 1)]
)
def test_what_is_held_out_is_not_fitted(make_tokens, there, samples, fitted, held):
    tokens = make_tokens(samples=there)
    one, other = split(tokens, samples)
    assert (len(one.input_ids), len(other.input_ids)) == (fitted, held)
    joined = Tokens(torch.cat([one.input_ids, other.input_ids]), torch.cat([one.mask, other.mask]))
    assert joined.digest() == tokens.first(fitted + held).digest()


def test_one_sequence_cannot_be_held_out(make_tokens, refuses):
    with refuses("two calibration sequences"):
        split(make_tokens(samples=1), 64)
