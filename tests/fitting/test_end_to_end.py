"""Maps fitted end to end: against the divergence of saved models, from all placements, resumed to the same bits."""

import json
from functools import partial

import pytest
import torch
from given import FULL

import replaceme
from replaceme.calibration.tokens import tokens_from_texts
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.fitting import end_to_end, pair, unchanged
from replaceme.fitting.fit_cut import fit_cut
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import load_causal_model, load_tokenizer
from replaceme.models.model_config import family_of
from replaceme.transforms.resume import State

FIT = {"objective": "kl", "kl_steps": 20, "kl_learning_rate": 0.03}
GROUPS = [(2, 4)]


def passes_of(folder, tokens, state=None):
    model = load_causal_model(folder, "float32", "cpu")
    family = family_of(read_config(folder), str(folder))
    return Passes(model.base_model, family, tokens, 4, "float32", state=state, headed=model)


def fitted(folder, tokens, groups=GROUPS, state=None, **options):
    passes = passes_of(folder, tokens, state)
    return fit_cut(FitConfig(**{**FIT, **options}), groups, resolve(str(folder)), None, lambda: passes, passes.family)


def divergence(whole, short, tokens):
    """The mean KL divergence of two models' next-token distributions, in float64, from plain transformers."""
    total = 0.0
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        with torch.no_grad():
            p, q = (one(ids[mask][None]).logits[0].double().log_softmax(-1) for one in (whole, short))
        total += float((p.exp() * (p - q)).sum())
    return total / tokens.count


@pytest.mark.parametrize("placement", ["mlp", "down_proj", "block"])
def test_the_divergence_falls_and_is_that_of_the_saved_model(llama, make_tokens, tmp_path, texts, placement):
    from transformers import AutoModelForCausalLM

    options = {**FIT, "placement": placement, "ridge_relative": 10, "towards": "zero"}  # a poor start
    cut = CutConfig(blocks=2, start=2)
    record = replaceme.prune(llama, texts=texts, cut=cut, fit=FitConfig(**options), out=tmp_path / "out", device="cpu")
    report = record["fit"]
    assert report["solver"] == "kl" and report["kl"] < 0.9 * report["kl_start"]
    assert [step for step, _ in report["kl_curve"]] == list(range(0, 21, 2))[: len(report["kl_curve"])]
    assert report["kl"] == min(value for _, value in report["kl_curve"])
    assert report["residual"] != report["closed_form"]["residual"], "it is of the trained map"
    tokens = tokens_from_texts(texts, load_tokenizer(llama), len(texts), 1024)
    held_out = tokens[end_to_end._Text.split(tokens, FitConfig(**options)).held_out]
    own = {"trust_remote_code": True} if placement == "block" else {}
    folders = (llama, tmp_path / "out")
    whole, short = (AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32, **own).eval() for one in folders)
    assert report["kl_tokens"] == held_out.count
    assert divergence(whole, short, held_out) == pytest.approx(report["kl"], rel=1e-3)


def test_several_groups_are_trained_together(llama, make_tokens):
    given = (llama, make_tokens(), [(1, 2), (4, 5)])
    found = fitted(*given, ridge_relative=10)
    closed = fitted(*given, ridge_relative=10, kl_steps=1, kl_learning_rate=1e-12)
    assert found[0].report["kl"] == found[1].report["kl"] < closed[0].report["kl"]
    assert all(not torch.equal(one.matrix, other.matrix) for one, other in zip(found, closed, strict=True))


def test_a_rate_that_is_too_high_is_lowered(llama, make_tokens, caplog):
    """The text and the steps are then those of a training at that rate from the beginning."""
    caplog.set_level("INFO")
    given = partial(fitted, llama, make_tokens(), [(1, 2), (4, 5)], ridge_relative=10)
    found = given(kl_learning_rate=3.0)
    report = found[0].report
    assert "again, at a rate of" in caplog.text and report["learning_rate"] in (3 / 3, 3 / 9, 3 / 27)
    assert report["kl"] < report["kl_start"]
    same = given(kl_learning_rate=report["learning_rate"])
    assert report["kl_curve"] == same[0].report["kl_curve"]
    assert all(torch.equal(one.matrix, other.matrix) for one, other in zip(found, same, strict=True))


def test_the_start_is_kept_where_training_makes_it_worse(llama, make_tokens):
    [found] = fitted(llama, make_tokens(), kl_learning_rate=300.0)
    assert found.report["learning_rate"] == pytest.approx(300 / 27), "three times lowered"
    assert found.report["kl"] == found.report["kl_start"] and found.report["steps"] < 20, "and it ends early"
    [closed] = fitted(llama, make_tokens(), objective="l2", kl_steps=300, kl_learning_rate=3e-4)
    assert torch.equal(found.matrix.float(), closed.matrix.float())


def count(ran, number, block, *_):
    ran[number] += getattr(block.forward, "__name__", "") != "hand_on"


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_what_does_not_change_is_computed_once(family, request, make_tokens, monkeypatch):
    """The divergence and its gradient are those of two whole passes, with states kept or not, activations computed
    again or not, on sequences of unequal length; where the logits are not the same, both models run from the start.
    """
    folder = request.getfixturevalue(family)
    passes = passes_of(folder, make_tokens(side="left"))
    start = fit_cut(FitConfig(), GROUPS, resolve(str(folder)), None, lambda: passes, passes.family)
    monkeypatch.setattr(unchanged, "DEVICE_SHARE", 0.0)
    found = []
    ways = ((-1, 0, False, (2, 2)), (-1, 1, False, (1, 1)), (1e-3, 1, True, (0, 1)), (1e-3, 0, False, (1, 2)))
    for same, room, recompute, runs in ways:
        monkeypatch.setattr(pair, "SAME", same)
        monkeypatch.setattr(unchanged, "HOST_SHARE", room)
        both = pair.Pair(passes, GROUPS, start, recompute)
        both.share([0, 2, 4, 5, 7], 2)
        ran = {0: 0, len(both.blocks) - 1: 0}  # of the first block and the last
        hooks = [both.blocks[block].register_forward_hook(partial(count, ran, block)) for block in ran]
        values = both.descend([4, 0, 7])
        for hook in hooks:
            hook.remove()
        assert tuple(ran.values()) == runs and both.kept == room
        assert torch.equal(both.divergence([4, 0, 7]), values)
        found.append((values, both.parameters[0].grad))
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [FIT["kl_learning_rate"], 3.0])  # which is lowered before the kill
def test_a_killed_fit_goes_on_to_the_same_bits(llama, make_tokens, tmp_path, monkeypatch, rate):
    given = (llama, make_tokens())
    [whole], [again] = (fitted(*given, kl_learning_rate=rate) for _ in range(2))
    assert torch.equal(whole.matrix, again.matrix) and whole.report == again.report
    state = State(tmp_path / "state", "same", seconds=0)
    step, steps = end_to_end._Fit._step, []

    def killed(fit, numbers):
        if len(steps) == 7:
            raise KeyboardInterrupt
        steps.append(step(fit, numbers))

    monkeypatch.setattr(end_to_end._Fit, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        fitted(*given, state=state, kl_learning_rate=rate)
    monkeypatch.setattr(end_to_end._Fit, "_step", step)
    [resumed] = fitted(*given, state=State(tmp_path / "state", "same", seconds=0), kl_learning_rate=rate)
    assert torch.equal(whole.matrix, resumed.matrix) and whole.report == resumed.report


def test_by_steps_as_by_prune(llama, tmp_path, texts):
    from replaceme.cli import main

    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def step(*words):
        assert main([str(word) for word in words]) == 0, words

    model, tokens, cut = (tmp_path / name for name in ("model.json", "tokens.safetensors", "cut.json"))
    step("model", llama, "--out", model)
    step("tokens", model, "--dataset", tmp_path / "text.jsonl", "--samples", 40, "--out", tokens)
    step("cut", model, "--blocks", 2, "--start", 2, "--out", cut)
    step("gram", model, tokens, cut, "--out", tmp_path / "gram")
    step("sum", tmp_path / "gram", "--out", tmp_path / "sum")
    fit = ["--objective", "kl", "--kl-steps", 4, "--tokens", tokens, "--statistics", tmp_path / "sum"]
    step("fit", model, cut, *fit, "--out", tmp_path / "fit")
    report = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert report["solver"] == "kl" and report["steps"] == 4 and report["kl"] <= report["kl_start"]
    assert sorted(one.name for one in (tmp_path / "fit").iterdir()) == ["fit.json", "transform.safetensors"]


def test_predictions_that_a_gpu_has_no_room_for_any_more_are_kept_elsewhere(llama, make_tokens, monkeypatch, caplog):
    """Another job took the room after it was measured."""
    places, keep = [], unchanged.Unchanged._keep

    def full_at_first(self, numbers, device):
        places.append(device)
        keep(self, numbers[:1] if len(places) == 1 else numbers, device)
        if len(places) == 1:
            raise torch.cuda.OutOfMemoryError(FULL[0])

    [plain] = fitted(llama, make_tokens())
    monkeypatch.setattr(unchanged.Unchanged, "_keep", full_at_first)
    monkeypatch.setattr(unchanged, "HOST_SHARE", 0.9)
    [found] = fitted(llama, make_tokens())
    assert len(places) == 2 and torch.equal(plain.matrix, found.matrix)
    assert "the whole model's predictions: the GPU had room" in caplog.text


@pytest.mark.parametrize("said", [*FULL, "shapes differ"])
def test_a_full_gpu_is_told_from_other_errors(llama, make_tokens, refuses, monkeypatch, said):
    def fails(*_):
        raise RuntimeError(said)

    monkeypatch.setattr(pair.Pair, "descend", fails)
    if said in FULL:
        with refuses("more memory than the GPU has", "set `kl_checkpointing: true` or lower `kl_sequences`"):
            fitted(llama, make_tokens())
    else:
        with pytest.raises(RuntimeError, match=said):
            fitted(llama, make_tokens())


def _out_of_memory(*_):
    raise torch.cuda.OutOfMemoryError(FULL[0])


def test_refusals(llama, make_tokens, refuses, monkeypatch):
    with refuses("needs two calibration sequences"):
        fitted(llama, make_tokens(samples=1))
    monkeypatch.setattr(pair.Pair, "divergence", lambda *_: torch.tensor([float("nan")]))
    with refuses("lower `kl_learning_rate`"):
        fitted(llama, make_tokens())
    monkeypatch.setattr(pair.Pair, "divergence", _out_of_memory)
    with refuses("than the GPU has; lower `kl_sequences`"):
        fitted(llama, make_tokens(), kl_checkpointing=True)
    for options, said in (
        ({"objective": "kl", "solver": "adam"}, "has a training of its own; drop solver"),
        ({"objective": "kl", "transform": "diagonal"}, "fits a full T; drop transform"),
        ({"objective": "kl", "fit_tokens": 100}, "takes no fit_tokens"),
        ({"kl_steps": 7}, "objective l2 takes no kl_steps"),
    ):
        with pytest.raises(ValueError, match=said):
            FitConfig(**options)
