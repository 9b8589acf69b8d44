"""What a shortening says of its result and of its time: against plain transformers, and at a given pace."""

import json
from math import exp

import pytest
import torch

import replaceme
from replaceme.calibration.tokens import Tokens, calibrate, calibrate_and_more
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.core.stages import rounded
from replaceme.fitting import estimate
from replaceme.fitting.passes import Passes
from replaceme.reports.summary import Summary


@pytest.fixture
def calibration(texts, tmp_path):
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return CalibrationConfig(dataset=str(tmp_path / "text.jsonl"), samples=30, tokens=20)


def test_more_of_a_source_is_what_follows(calibration, tokenizer):
    tokens, more, record = calibrate_and_more(calibration, tokenizer, 16)
    same, its_record = calibrate(calibration, tokenizer)
    assert tokens.digest() == same.digest() and record == its_record
    whole, _ = calibrate(calibration.model_copy(update={"samples": 40}), tokenizer)
    assert len(more) == 10 and torch.equal(tokens.join(more).input_ids, whole.input_ids)
    assert calibrate_and_more(calibration.model_copy(update={"samples": 40}), tokenizer, 16)[1] is None


def test_predictions_are_those_of_the_saved_model(llama, calibration, tokenizer, tmp_path, monkeypatch, caplog):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(estimate, "WORTH_IT", 0)
    caplog.set_level("INFO", "replaceme.pruning")
    given = {"cut": CutConfig(blocks=2, metric="cosine"), "out": tmp_path / "out", "device": "cpu", "verify": False}
    summary = replaceme.prune(llama, calibration, fit=FitConfig(placement="block"), **given)["summary"]
    assert caplog.messages[0].startswith("about ") and "from here" in caplog.messages[0]
    folders = (llama, tmp_path / "out")
    models = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32, trust_remote_code=True) for one in folders]
    _, more, _ = calibrate_and_more(calibration, tokenizer, 16)
    losses, counted, kl = [0.0, 0.0], 0, 0.0
    for ids, mask in zip(more.input_ids, more.mask, strict=True):
        with torch.no_grad():
            found = [one.eval()(ids[mask][None]).logits[0].double().log_softmax(-1) for one in models]
        for k, one in enumerate(found):
            losses[k] -= float(one[:-1].gather(1, ids[mask][1:, None]).sum())
        counted += int(mask.sum()) - 1
        kl += float((found[0].exp() * (found[0] - found[1])).sum())
    predictions = summary["predictions"]
    assert (predictions["sequences"], predictions["tokens"], predictions["text"]) == (10, counted, "held out")
    expected = (*(exp(loss / counted) for loss in losses), kl / more.count)
    assert [predictions[name] for name in ("perplexity", "perplexity_after", "kl")] == pytest.approx(expected, rel=1e-4)
    assert summary["blocks"] == (6, 4) and summary["parameters"][1] < summary["parameters"][0]
    assert list(summary["seconds"]) == ["load", "gather", "fit", "compare", "write"]
    text = Summary(**summary).text()
    for line in (
        f"{llama}, shortened: {tmp_path / 'out'}", "blocks      6 -> 4, without blocks [", "on 152 tokens held out",
        "least squares, placement block, residual 0.", "nats per token", "time        load ", "B at most\n",
        "lm_eval --model hf", "trust_remote_code=True)",
    ):  # fmt: skip
        assert line.replace("152", str(counted)) in text


@pytest.mark.parametrize(("cut", "fit", "passes", "solves"), [
    ({"start": 2}, {"transform": "identity"}, 0, 0),
    ({"start": 2}, {}, 1, 1),
    ({"metric": "cosine"}, {}, 1, 1),
    ({"metric": "cosine"}, {"ridge": "auto"}, 2, 21),
    ({}, {}, 1 + 2 * 0.5, 1 + 6),
    ({"start": 2}, {"objective": "kl", "kl_steps": 10}, 1 + 4 * 10 * 4 / 24, 1),
    # 12 attentions and MLPs in each of 4 rounds, without a fit
    ({"search": "sublayers", "metric": "kl_without", "samples": 12}, {}, 1 + 0.5 * (2 + 12 * 4), 1),
])  # fmt: skip
def test_the_time_of_a_shortening_by_its_pace(llama, blocks_of, cut, fit, passes, solves):
    """24 sequences of 20 positions, the default cut on half of them; a pass takes 480 s, a solve 1/4096 of 256's."""
    ids = torch.ones(24, 20, dtype=torch.int64)
    given = Passes(*blocks_of(llama), Tokens(ids, ids.bool()), 4, "float32")
    section = CutConfig(blocks=2, **cut, **({} if cut else {"samples": 12}))
    found = [
        estimate.seconds(estimate.Pace(*pace), given, 16, section, FitConfig(**fit))
        for pace in ((1.0, 0.0, 0.0), (0.0, 0.0, 4096.0))
    ]
    assert found == pytest.approx([480 * passes, solves])


def test_times_are_rounded():
    times = (0.2, 8.4, 42, 89, 100, 3000, 20_000)
    assert [rounded(one) for one in times] == ["1 s", "8 s", "40 s", "90 s", "2 min", "50 min", "6 h"]
