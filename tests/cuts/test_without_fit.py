"""Perplexity without blocks and Taylor scores against plain transformers, and the search that takes one by one."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

import replaceme
from replaceme import cli
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.after_fit import candidates_of
from replaceme.cuts.choose import choose
from replaceme.cuts.taylor import taylor_scores
from replaceme.cuts.without_fit import one_by_one
from replaceme.models.checkpoints import resolve
from replaceme.models.families import SANDWICH, SEQUENTIAL
from replaceme.models.loading import load_causal_model

RECORD = SimpleNamespace(num_blocks=6, parameters=1000, block_parameters=[100] * 6)


def brute_loss(folder, tokens, gone=(), gradients=False):
    """Return (mean loss, model) in float64, sequence by sequence without padding, the blocks really taken out."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    kept = [layer for k, layer in enumerate(model.model.layers) if k not in gone]
    model.model.layers = torch.nn.ModuleList(kept)
    if hasattr(model.config, "layer_types") and model.config.layer_types:
        model.config.layer_types = [kind for k, kind in enumerate(model.config.layer_types) if k not in gone]
    model.config.num_hidden_layers = len(kept)
    losses = []
    with torch.set_grad_enabled(gradients):
        for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
            log_p = model(ids[mask][None], use_cache=False).logits[0].log_softmax(-1)
            losses += [-log_p[k, token] for k, token in enumerate(ids[mask][1:])]
    return torch.stack(losses).mean(), model


def measured(folder, family, tokens, **cut):
    model = load_causal_model(folder, "float32", "cpu")
    return candidates_of(CutConfig(**cut), RECORD, model, family, tokens, 5)["candidates"]


@pytest.mark.parametrize(("name", "family"), [("llama", SEQUENTIAL), ("gemma", SANDWICH)])
@pytest.mark.parametrize(("options", "spans"), [
    ({"blocks": 2, "search": "independent"}, [(k, k + 1) for k in range(1, 6)]),
    ({"blocks": 3}, [(k, k + 3) for k in range(1, 4)]),
])  # fmt: skip
def test_perplexity_is_that_of_the_model_without_the_blocks(request, make_tokens, name, family, options, spans):
    folder = request.getfixturevalue(name)
    tokens = make_tokens(samples=6, side="left")
    found = measured(folder, family, tokens, metric="perplexity", **options)
    assert [(one["start"], one["end"]) for one in found] == spans
    for one in found:
        loss, _ = brute_loss(folder, tokens, range(one["start"], one["end"]))
        assert one["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_taylor_is_the_sum_of_weights_times_gradients(llama, make_tokens, side):
    tokens = make_tokens(samples=7, side=side)
    loss, plain = brute_loss(llama, tokens, gradients=True)
    loss.backward()
    expected = [
        sum(float((w.detach() * w.grad).abs().sum()) for w in layer.parameters()) for layer in plain.model.layers
    ]
    found = measured(llama, SEQUENTIAL, tokens, blocks=3, search="independent", metric="taylor")
    assert [one["taylor"] for one in found] == pytest.approx(expected[1:], rel=1e-4)
    runs = measured(llama, SEQUENTIAL, tokens, blocks=2, metric="taylor")
    assert [one["taylor"] for one in runs] == pytest.approx([sum(expected[k : k + 2]) for k in range(1, 5)], rel=1e-4)


def test_taylor_leaves_the_model_as_it_was(llama, make_tokens):
    model = load_causal_model(llama, "float32", "cpu")
    one, two = (taylor_scores(model, SEQUENTIAL, make_tokens(), 5, [1, 4]) for _ in range(2))
    assert one == two and list(one) == [1, 4]
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_taylor_of_a_text_without_a_next_token(llama, make_tokens, refuses):
    model = load_causal_model(llama, "float32", "cpu")
    with refuses("no sequence of two tokens"):
        taylor_scores(model, SEQUENTIAL, make_tokens(samples=1, longest=1), 5, [1])


@pytest.mark.parametrize("metric", ["perplexity", "taylor"])
def test_iterative_measures_without_those_before(llama, make_tokens, metric):
    """The blocks are really taken out, one after another, and what is left is measured anew."""
    tokens, cut = make_tokens(samples=6), {"blocks": 3, "search": "iterative", "metric": metric, "keep_last": 1}

    def value(gone, block):
        loss, plain = brute_loss(llama, tokens, [*gone, block] if metric == "perplexity" else gone, metric == "taylor")
        if metric == "perplexity":
            return math.exp(loss)
        loss.backward()
        kept = [k for k in range(6) if k not in gone]
        return sum(float((w.detach() * w.grad).abs().sum()) for w in plain.model.layers[kept.index(block)].parameters())

    gone, expected = [], []
    for number in range(3):
        values = {block: value(gone, block) for block in range(1, 5) if block not in gone}
        expected += [(number, block, pytest.approx(one, rel=1e-4)) for block, one in values.items()]
        gone.append(min(values, key=values.get))
    found = measured(llama, SEQUENTIAL, tokens, **cut)
    assert [(one["round"], one["start"], one[metric]) for one in found] == expected
    chosen = choose(CutConfig(**cut), RECORD, candidates=found)
    assert [start for start, _ in chosen.parts] == sorted(gone)
    assert (chosen.search, chosen.candidates) == ("iterative", found)


def test_a_block_that_matters_only_after_another_went():
    """A block costs 1 alone, 9 without its double: one shot takes both, one by one does not."""

    def measure(gone, left):
        alone = {1: 1.0, 2: 1.1, 3: 2.0, 4: 5.0}
        return [9.0 if gone and {*gone[-1], *span} == {1, 2, 3} else alone[span[0]] for span in left]

    spans = [(k, k + 1) for k in range(1, 5)]
    found = one_by_one(measure, spans, 2, "perplexity")
    record = SimpleNamespace(**vars(RECORD) | {"num_blocks": 5})
    cut = {"blocks": 2, "metric": "perplexity"}
    assert choose(CutConfig(**cut, search="iterative"), record, candidates=found).groups == [(1, 2), (3, 4)]
    first = [one for one in found if one["round"] == 0]
    assert choose(CutConfig(**cut, search="independent"), record, candidates=first).groups == [(1, 3)]


def test_rounds_of_another_search_are_refused(refuses):
    entries = one_by_one(lambda gone, left: [1.0] * len(left), [(k, k + 1) for k in range(1, 6)], 2, "taylor")
    cut = {"search": "iterative", "metric": "taylor"}
    for options, number in (({"blocks": 2, "keep_last": 1}, 0), ({"blocks": 3}, 2)):
        with refuses(f"not those of round {number}", "measure them again"):
            choose(CutConfig(**cut, **options), RECORD, candidates=entries)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "iterative"}, "search iterative measures perplexity or taylor; change metric"),
        ({"search": "iterative", "metric": "bi"}, "search iterative measures perplexity or taylor"),
        ({"search": "dynamic", "groups": 2, "metric": "perplexity"}, "which perplexities do not"),
        ({"metric": "perplexity", "position": "last"}, "averages over all tokens"),
        ({"metric": "taylor", "position": "last"}, "averages over all tokens"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(**{"blocks": 4, **options})


def test_by_steps_and_in_one_go(llama, texts, tmp_path):
    """SLEB through the command line, and through `prune`, is one and the same."""
    (tmp_path / "text.txt").write_text("\n".join(texts))
    text = ["--dataset", str(tmp_path / "text.txt"), "--samples", "6", "--tokens", "16"]
    search = ["--blocks=2", "--search=iterative", "--metric=perplexity", "--keep-last=1", "--samples=4"]
    assert cli.main(["tokens", str(llama), *text, "--out", str(tmp_path / "t.safetensors")]) == 0
    out = ["--out", str(tmp_path / "candidates.json")]
    assert cli.main(["candidates", str(llama), str(tmp_path / "t.safetensors"), *search, *out]) == 0
    out = ["--candidates", str(tmp_path / "candidates.json"), "--out", str(tmp_path / "cut.json")]
    assert cli.main(["cut", str(llama), *search, *out]) == 0
    chosen = json.loads((tmp_path / "cut.json").read_text())
    calibration = CalibrationConfig(dataset=str(tmp_path / "text.txt"), samples=6, tokens=16)
    cut = CutConfig(blocks=2, search="iterative", metric="perplexity", keep_last=1, samples=4)
    fit = FitConfig(transform="identity")
    record = replaceme.prune(llama, calibration, cut=cut, fit=fit, out=tmp_path / "short", verify=False)
    assert record["cut"]["groups"] == chosen["groups"] and record["cut"]["metric"] == "perplexity"
    assert resolve(str(tmp_path / "short")).num_blocks == 4
