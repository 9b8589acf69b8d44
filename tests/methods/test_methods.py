"""What all methods have in common: one size, checkpoints that plain transformers loads, refusals before any work."""

import json

import pytest
import torch
from given import cut_of

import replaceme
from replaceme.cli import main
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig, fit_config
from replaceme.core.files import read_json
from replaceme.fitting.one_pass import can_foresee
from replaceme.methods.fitting import fit_method
from replaceme.methods.found import Found
from replaceme.methods.registry import METHODS, check_method
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.custom_code import CODE
from replaceme.models.loading import load_causal_model
from replaceme.surgery import shards
from replaceme.surgery.model_card import licence_of
from replaceme.surgery.write_checkpoint import Merger

CODED = {"svd_llm", "slicegpt", "llm_pruner"}
QUICK = {"llm_streamline": {"epochs": 1}}
CUT = CutConfig(blocks=2, start=2)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_has_the_size_of_the_cut_and_a_fresh_process_loads_it(method, sharded, texts, tmp_path):
    """`verify` compares the logits of one of them in that process with those of the original run as the method says."""
    fit, out = fit_config(method=method, **QUICK.get(method, {})), tmp_path / "out"
    record = replaceme.prune(sharded, texts=texts, cut=CUT, fit=fit, out=out, device="cpu", verify=method == "slicegpt")
    original = load_causal_model(sharded, "float32", "cpu")
    target = original.num_parameters() - sum(one.numel() for one in original.model.layers[2:4].parameters())
    count = load_causal_model(out, "float32", "cpu").num_parameters()
    assert 0.9 * target < count <= target, "layers of 16 channels leave room between two ranks"
    assert (out / CODE.name).exists() == (method in CODED) == fit.own_code
    card = (out / "README.md").read_text()
    assert METHODS[method].title in card and METHODS[method].arxiv in card
    assert ("trust_remote_code=True" in card) == (method in CODED)
    assert record["method"] == method and read_json(out / "replaceme.json")["fit"] == record["fit"]
    assert licence_of(out) == licence_of(sharded)


@pytest.mark.parametrize("method", METHODS)
def test_step_by_step(method, llama, tmp_path, monkeypatch, texts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = str(llama)
    quick = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.get(method, {}).items()]
    for step in (
        [
            "tokens",
            source,
            "--dataset",
            "text.jsonl",
            "--samples",
            "12",
            "--tokens",
            "16",
            "--out",
            "tokens.safetensors",
        ],
        ["cut", source, "--blocks", "2", "--start", "2", "--out", "cut.json"],
        ["fit", source, "cut.json", "--tokens", "tokens.safetensors", "--method", method, *quick, "--out", "fit"],
        ["merge", source, "cut.json", "fit/transform.safetensors", "--out", "model"],
    ):
        assert main(step) == 0, step
    report = read_json("fit/fit.json")
    assert report["method"] == method and report["own_code"] == (method in CODED) and "placement" not in report
    found, origin = Found.load("fit/transform.safetensors")
    assert found.method == method and origin["groups"] == [[2, 4]] and origin["tokens_sha256"]
    assert not list((tmp_path / "fit").glob(".fit-state*"))
    load_causal_model("model", "float32", "cpu")


def test_what_is_missing_or_damaged_is_said(llama, tmp_path, monkeypatch, capsys, refuses):
    monkeypatch.chdir(tmp_path)
    assert main(["cut", str(llama), "--blocks", "2", "--start", "2", "--out", "cut.json"]) == 0
    assert main(["fit", str(llama), "cut.json", "--method", "svd_llm", "--out", "fit"]) == 1
    assert "give --tokens" in capsys.readouterr().err
    Found("svd_llm", {"0.x": load_causal_model(llama, "float32", "cpu").lm_head.weight / 0}, {}).save("bad", {})
    with refuses("0.x holds NaN or infinity", "fit it again"):
        Found.load("bad")


LLAMA = {"hidden_size": 8, "num_hidden_layers": 2, "model_type": "llama"}
REFUSED = {
    "svd_llm": {"gpt2": {"n_layer": 2, "n_embd": 8}, "mixtral": {}, "gpt_neox": {}, "vit": {}},
    "llm_streamline": {"qwen3_moe": {}, "vit": {}},
    "slicegpt": {"gemma2": {}, "opt": {}, "mixtral": {}, "vit": {}},
    "llm_pruner": {"gpt2": {"n_layer": 2, "n_embd": 8}, "phi3": {}, "mixtral": {}, "vit": {}},
    "flattengpt": {"gpt2": {"n_layer": 2, "n_embd": 8}, "gemma2": {}, "mixtral": {}, "vit": {}},
}


@pytest.mark.parametrize(("method", "model_type"), [(m, one) for m, models in REFUSED.items() for one in models])
def test_a_model_that_a_method_cannot_do_is_refused(method, model_type, refuses):
    check_method(LLAMA, method, "m")
    with refuses("m: method", method, "not for this model", "use another method"):
        check_method({**LLAMA, "model_type": model_type, **REFUSED[method][model_type]}, method, "m")


def test_all_refusals_come_before_any_work(gemma, tmp_path, texts, refuses):
    with refuses("method slicegpt is not for this model"):
        replaceme.prune(gemma, texts=texts, cut=CUT, fit=fit_config(method="slicegpt"), out=tmp_path / "out")


def test_weights_in_4_bits_and_on_several_devices_are_refused(llama, make_tokens, make_passes, refuses):
    def fit(parameter):
        passes = make_passes(llama, make_tokens(samples=2))
        passes.model.norm.weight = torch.nn.Parameter(parameter, requires_grad=False)
        fit_method(passes, fit_config(method="svd_llm"), {}, {})

    with refuses("method svd_llm needs the weights as they are", "drop `load_in_4bit`"):
        fit(torch.ones(16, dtype=torch.uint8))
    with refuses("method svd_llm needs the model on one device", "use `gpus: 1`"):
        fit(torch.ones(16, device="meta"))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_begun_before_a_method_is_through(method, sharded, texts, tmp_path, monkeypatch):
    """Also where the cut is chosen by distance, which for a T takes one forward pass with the fit."""
    monkeypatch.setattr(Merger, "begin", lambda *_: pytest.fail("shards are copied"))
    fit, cut = fit_config(method=method, **QUICK.get(method, {})), CutConfig(blocks=2, metric="cosine")
    assert not can_foresee(cut, fit, None) and can_foresee(cut, FitConfig(), None)
    record = replaceme.prune(sharded, texts=texts, cut=cut, fit=fit, out=tmp_path / "out", verify=False)
    assert record["cut"]["metric"] == "cosine" and record["method"] == method


def test_shards_without_linear_layers_are_copied(make_llama, make_tokens, fitted, write_found, tmp_path, monkeypatch):
    folder = make_llama(shard="4KB")
    copied, real = [], shards.copy_shard
    monkeypatch.setattr(
        shards, "copy_shard", lambda layout, target: (copied.append(layout.source.name), real(layout, target))[1]
    )
    record, found = fitted(folder, make_tokens(samples=4), "svd_llm")
    write_found(record, cut_of([[2, 4]], 6), found, tmp_path / "out")
    checkpoint = open_checkpoint(folder)
    linear = {shard for name, (shard, *_) in checkpoint.tensors.items() if "_proj" in name}
    assert copied and set(copied) == set(checkpoint.shards) - linear


@pytest.mark.parametrize("method", METHODS)
def test_streamed_models_are_refused(method, llama, texts, tmp_path, refuses):
    from replaceme.config.calibrations import CalibrationConfig

    (tmp_path / "text.txt").write_text(" ".join(texts))
    streamed = CalibrationConfig(dataset=str(tmp_path / "text.txt"), samples=4, tokens=16, streaming="always")
    what = "the loss of a model needs all of it" if method == "llm_pruner" else f"method {method} needs the whole model"
    with refuses(what, "streaming: never"):
        replaceme.prune(llama, streamed, cut=CUT, fit=fit_config(method=method), out=tmp_path / "out")
