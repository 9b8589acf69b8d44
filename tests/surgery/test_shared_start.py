"""Models that differ from some block on: the same bits as each run whole, and how many blocks they run."""

from collections import Counter

import pytest
import torch

from replaceme.activations import comparison, language_loss
from replaceme.config.cuts import CutConfig
from replaceme.core.places import is_gone
from replaceme.cuts import after_fit, sublayers, without_fit
from replaceme.cuts.after_fit import candidates_of, measure_candidates
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import family_of
from replaceme.surgery.shared_start import begins_anywhere

BATCHES = 3  # of two sequences


@pytest.fixture
def counted(request, make_tokens, monkeypatch):
    """(model, family, folder, tokens in batches of two, calls of each block's attention)"""

    def load(name):
        folder = request.getfixturevalue(name)
        model, tokens, calls = load_causal_model(folder, "float32", "cpu"), make_tokens(2 * BATCHES, seed=1), Counter()
        monkeypatch.setattr(language_loss, "LOGITS", 2 * model.config.vocab_size * tokens.input_ids.shape[1])
        for number, block in enumerate(model.base_model.layers):
            block.self_attn.register_forward_hook(lambda *_, number=number: calls.update([number]))
        return model, family_of(read_config(folder), name), folder, tokens, calls

    return load


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_a_round_of_sublayers_runs_the_blocks_before_each_once(counted, monkeypatch, name):
    model, family, folder, tokens, calls = counted(name)
    cut = CutConfig(blocks=2, search="sublayers", metric="kl_without")
    found = candidates_of(cut, resolve(str(folder)), model, family, tokens, 4)["candidates"]
    expected, gone = 6 * BATCHES + 6 + sum(range(1, 6)), []  # the whole model once, and the trial of blocks 1 .. 5
    for number in range(found[-1]["round"] + 1):
        spans = [(one["start"], one["end"]) for one in found if one["round"] == number]
        expected += BATCHES * _run([], gone)
        expected += BATCHES * sum(_run([span], gone, int(span[0])) for span in spans)
        gone += [(one["start"], one["end"]) for one in found if one["round"] == number and one["kept"]]
    assert calls.total() == expected
    monkeypatch.setattr(sublayers, "begins_anywhere", lambda *_: False)
    monkeypatch.setattr(comparison, "SHARE", 0)
    calls.clear()
    assert candidates_of(cut, resolve(str(folder)), model, family, tokens, 4)["candidates"] == found, "to the last bit"
    assert calls.total() > 1.5 * expected


def _run(more, gone, first=0):
    """Return how many blocks run from the first one on: those that do not lack both halves."""
    halves = [half / 2 for half in range(12)]
    left = {half // 1 for half in halves if not is_gone(half, [*gone, *more])}
    return len([block for block in left if block >= first])


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_loss_and_kl_of_cuts_run_the_blocks_before_each_once(counted, make_tokens, monkeypatch, name):
    model, family, _, tokens, calls = counted(name)
    fitted = make_tokens(samples=30)
    found = measure_candidates(model, family, fitted, [2], 7, {"": tokens}, halves=True)
    here = calls.total()
    calls.clear()
    monkeypatch.setattr(after_fit, "begins_anywhere", lambda *_: False)
    assert measure_candidates(model, family, fitted, [2], 7, {"": tokens}, halves=True) == found, "to the last bit"
    cuts = [(one["start"], one["end"]) for one in found]
    carriers = [-int(-(start - 1) // 1) for start, _ in cuts]
    before = sum(
        sum(not is_gone(block, [cut]) for block in range(carrier)) for cut, carrier in zip(cuts, carriers, strict=True)
    )
    assert calls.total() - here == BATCHES * before - 6 - sum(6 - carrier for carrier in set(carriers))


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_perplexities_of_a_round_run_the_blocks_before_each_once(counted, monkeypatch, name):
    model, family, folder, tokens, calls = counted(name)
    cut = CutConfig(blocks=2, search="iterative", metric="perplexity")
    found = candidates_of(cut, resolve(str(folder)), model, family, tokens, 4)["candidates"]
    [gone] = [one for one in found if one["round"] == 0 and one["perplexity"] == min(
        other["perplexity"] for other in found if other["round"] == 0)]  # fmt: skip
    gone = [(gone["start"], gone["end"])]
    first, second = ([(one["start"], one["end"]) for one in found if one["round"] == number] for number in (0, 1))
    runs = 6 + _run([], gone) + sum(_run([one], [], one[0]) for one in first)
    runs += sum(_run([one], gone, one[0]) for one in second)
    assert calls.total() == BATCHES * runs + 6 + sum(range(1, 6))
    monkeypatch.setattr(without_fit, "begins_anywhere", lambda *_: False)
    assert candidates_of(cut, resolve(str(folder)), model, family, tokens, 4)["candidates"] == found, "to the last bit"


def test_what_goes_past_the_residual_stream_shows(counted):
    """As a block whose keys another one uses too."""
    model, family, _, tokens, _ = counted("llama")
    assert begins_anywhere(model, family, tokens, range(1, 6))
    seen, layers = [], model.model.layers
    layers[1].register_forward_hook(lambda block, inputs, output: seen.append(output.mean()))
    layers[3].register_forward_hook(lambda block, inputs, output: output + seen[-1])
    assert begins_anywhere(model, family, tokens, [1, 4, 5]) and not begins_anywhere(model, family, tokens, [3])


@pytest.mark.parametrize("room", [0.0, 1e9])
def test_predictions_are_kept_as_far_as_there_is_room(counted, monkeypatch, room):
    model, _, _, tokens, calls = counted("llama")
    monkeypatch.setattr(comparison, "free_memory", lambda device: room)
    kept = comparison.Kept(model)
    with torch.inference_mode():
        one, other = kept(tokens), kept(tokens)
    assert torch.equal(one, other) and calls.total() == (6 if room else 12)
