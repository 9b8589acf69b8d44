"""How much text is enough: the curve is that of least squares on rows, and what is kept is what a number would give."""

import json
import logging
from pathlib import Path

import pytest
import torch

import replaceme
from replaceme.activations import capture
from replaceme.cli import main
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig, widest
from replaceme.config.placement import Regression
from replaceme.fitting.enough import Criterion, find_enough, spread_cuts


@pytest.fixture
def many(texts, tmp_path):
    """A file of 120 texts, of which 7 are held out."""
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"{text} w{k % 50}"}) + "\n" for k, text in enumerate(3 * texts)))
    return path


def test_the_curve_is_that_of_least_squares_on_rows(llama, blocks_of, make_tokens, brute_rows, monkeypatch, caplog):
    seen, forward = [], capture.forward
    monkeypatch.setattr(capture, "forward", lambda *given: (seen.append(len(given[2])), forward(*given))[1])
    tokens = make_tokens(samples=70, longest=9)
    with caplog.at_level(logging.INFO):
        kept, found = find_enough(*blocks_of(llama, "float64"), tokens, 8, Criterion(0.9))
    assert sum(seen) == 64 + 4, "each sample once, the held-out ones too"
    assert [point.samples for point in found.curve] == [32, 64] and found.found and len(kept) == found.samples == 64
    assert "64 samples" in caplog.text and caplog.text.rstrip().endswith("): enough")
    hidden, mlp, ends = brute_rows(llama, tokens)
    held_out = slice(int(ends[65]) + 1, None)
    for point in found.curve:
        given = slice(0, int(ends[point.samples - 1]) + 1)
        assert point.tokens == given.stop
        for (start, end), residual in zip(spread_cuts(6), point.residuals, strict=True):
            m, r = mlp[start - 1], hidden[end - 1] - hidden[start - 1] + mlp[start - 1]
            left = m[held_out] @ torch.linalg.lstsq(m[given], r[given]).solution - r[held_out]
            assert residual == pytest.approx(float(left.square().sum() / r[held_out].square().sum()), rel=1e-8)


def test_text_that_is_never_enough_is_taken_whole(llama, blocks_of, make_tokens, caplog):
    tokens = make_tokens(samples=70, longest=9)
    kept, found = find_enough(*blocks_of(llama), tokens, 8, Criterion(1e-6))
    assert len(kept) == 70 and not found.found
    assert "all 70 samples are taken" in caplog.text and "raise `most` or `tolerance`" in caplog.text
    kept, found = find_enough(*blocks_of(llama), tokens.first(40), 8, Criterion(0.9))
    assert len(kept) == 40 and "too few to judge" in found.reason


def test_fewer_tokens_than_the_fit_is_wide_are_not_judged(make_llama, blocks_of, make_tokens):
    loaded = blocks_of(make_llama(intermediate_size=300, num_hidden_layers=3))
    tokens = make_tokens(samples=140, longest=9)
    assert tokens.first(32).count < 300 < tokens.first(64).count
    _, found = find_enough(*loaded, tokens, 8, Criterion(0.99, Regression("down_proj")))
    assert [point.samples for point in found.curve] == [64, 128] and found.record()["placement"] == "down_proj"


@pytest.mark.parametrize(("blocks", "cuts"), [
    (32, [(8, 16), (16, 24), (24, 32)]), (6, [(1, 2), (3, 4), (4, 5)]), (3, [(1, 2), (2, 3)]), (2, [(1, 2)]),
])  # fmt: skip
def test_cuts_are_spread_over_the_depth(blocks, cuts):
    assert spread_cuts(blocks) == cuts


def test_the_widest_placement_decides():
    fits = [FitConfig(transform="identity"), FitConfig(), FitConfig(placement="block")]
    assert widest(fits) == widest([]) == FitConfig()
    assert widest([*fits, FitConfig(placement="down_proj", recycle=0.5)]) == FitConfig(placement="down_proj")


def test_the_step_writes_the_file_that_a_number_gives(llama, many, tmp_path, capsys):
    def step(*words, code=0):
        assert main([str(word) for word in words]) == code, words

    source = ("--dataset", many, "--tokens", 12)
    step("tokens", llama, *source, "--samples", 120, "--out", tmp_path / "most.safetensors")
    for folder in ("one", "two"):
        given = ("--tolerance", 0.9, "--batch-size", 8, "--report", tmp_path / folder / "enough.json")
        step("enough", llama, tmp_path / "most.safetensors", *given, "--out", tmp_path / folder / "tokens.safetensors")
    step("tokens", llama, *source, "--samples", 64, "--out", tmp_path / "number.safetensors")
    same = {(tmp_path / name).read_bytes() for name in ("one/tokens.safetensors", "two/tokens.safetensors")}
    assert same == {(tmp_path / "number.safetensors").read_bytes()}
    report = json.loads((tmp_path / "one/enough.json").read_text())
    assert report["enough"] and report["samples"] == 64 and report["held_out"]["samples"] == 7
    assert all(point["seconds"] > 0 and len(point["residuals"]) == 3 for point in report["curve"])
    step("figure", "enough", tmp_path / "one/enough.json", "--out", tmp_path / "enough.svg")
    assert "held out, placement mlp" in Path(tmp_path / "enough.svg").read_text()
    capsys.readouterr()
    step("tokens", llama, *source, "--samples", "auto", "--out", tmp_path / "none", code=1)
    step("enough", llama, tmp_path / "most.safetensors", *given[4:], "--tolerance", 0, "--out", tmp_path / "no", code=1)
    refused, zero = capsys.readouterr().err.splitlines()
    assert (
        "samples auto is found by `prune` or the workflow" in refused and "tolerance: Input should be greater" in zero
    )


def test_prune_takes_what_is_enough(llama, many, tmp_path):
    def prune(name, **size):
        calibration = CalibrationConfig(dataset=str(many), tokens=12, batch_size=8, **size)
        given = {"cut": CutConfig(blocks=2, start=3), "fit": FitConfig(), "verify": False}
        record = replaceme.prune(llama, calibration, out=tmp_path / name, **given)
        return record["origin"]["calibration"], (tmp_path / name / "model.safetensors").read_bytes()

    (text, weights), (_, same) = prune("auto", samples="auto", most=120, tolerance=0.9), prune("number", samples=64)
    assert weights == same
    assert text["samples"] == 64 and [point["samples"] for point in text["enough"]["curve"]] == [32, 64]
