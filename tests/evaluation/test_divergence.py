"""The divergence of a model from its original against brute force, and the text that it refuses."""

import math

import pytest
import torch

from replaceme.cli import main
from replaceme.core.files import read_json, write_json
from replaceme.evaluation.divergence import check_unseen, divergence
from replaceme.models.loading import load_causal_model


@pytest.fixture(scope="module")
def other(make_llama):
    """Another model of the same vocabulary, with fewer blocks."""
    return make_llama(seed=1, num_hidden_layers=4)


def test_divergence_and_perplexities_by_brute_force(llama, other, make_tokens, tmp_path):
    """Padded on the left, of lengths that differ; the error is that of a ratio, over sequences."""
    tokens = make_tokens(samples=6, side="left")
    tokens.save(tmp_path / "tokens.safetensors", {})
    command = ["divergence", str(llama), str(other), "--tokens", str(tmp_path / "tokens.safetensors")]
    assert main([*command, "--dtype", "float32", "--device", "cpu", "--out", str(tmp_path / "out.json")]) == 0
    found = read_json(tmp_path / "out.json")
    models = [load_causal_model(folder, "float32", "cpu").double() for folder in (llama, other)]
    sums, counts, losses = [], [], [[], []]
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        with torch.inference_mode():
            p, q = (model(ids[mask][None]).logits[0].log_softmax(-1) for model in models)
        sums.append(float((p.exp() * (p - q)).sum()))
        counts.append(int(mask.sum()))
        for one, log_p in zip(losses, (p, q), strict=True):
            one += [-float(log_p[k, token]) for k, token in enumerate(ids[mask][1:])]
    value = sum(sums) / sum(counts)
    assert len(set(counts)) > 1 and value > 0.01
    spread = sum((one - value * count) ** 2 for one, count in zip(sums, counts, strict=True))
    assert found["kl"]["value"] == pytest.approx(value, rel=1e-4)
    assert found["kl"]["stderr"] == pytest.approx(math.sqrt(6 / 5 * spread) / sum(counts), rel=1e-3)
    assert (found["kl"]["n"], found["kl"]["tokens"]) == (6, sum(counts))
    for name, one in zip(("original", "model"), losses, strict=True):
        assert found["perplexity"][name]["value"] == pytest.approx(math.exp(sum(one) / len(one)), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(llama, make_tokens):
    found = divergence(llama, llama, make_tokens(samples=3))
    assert found["kl"]["value"] == 0 and found["perplexity"]["original"] == found["perplexity"]["model"]


def test_text_that_was_seen(llama, other, make_tokens, make_llama, refuses, tmp_path):
    """By the same sequences, cut shorter or not, or by the record of the model."""
    tokens, unseen = make_tokens(samples=6), make_tokens(samples=6, seed=1)
    check_unseen(unseen, tokens, "fitted")
    for seen in (tokens[4:], tokens.join(unseen), unseen.join(tokens[:1])):
        with refuses("fitted: has ", "of the 6 sequences"):
            check_unseen(tokens, seen, "fitted")
    width = tokens.input_ids.shape[1] // 2
    shorter = type(tokens)(tokens.input_ids[:, :width], tokens.mask[:, :width])
    with refuses("fitted: has 6 of the 6"):
        check_unseen(shorter, tokens, "fitted")
    write_json(tmp_path / "replaceme.json", {"fit": {"by": [{"tokens_sha256": tokens.digest()}]}})
    with refuses("was made with this text"):
        divergence(llama, tmp_path, tokens)
    with refuses("one model predicts 66 tokens, the other 70"):
        divergence(llama, make_llama(vocab_size=70), tokens)
