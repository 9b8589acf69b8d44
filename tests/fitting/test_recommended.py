"""The fit of `prune` where none is asked for, by device, architecture and memory, and the metric of its cut."""

import json

import pytest

from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.fitting import recommended
from replaceme.models.checkpoints import read_config, resolve


@pytest.fixture
def chosen(monkeypatch):
    """The fit for a model on a pretended GPU of some bytes, or on none."""

    def choose(folder, memory=None, **forward):
        monkeypatch.setattr(recommended, "free_memory", lambda device, gpus: memory)
        monkeypatch.setattr(recommended, "pick_device", lambda device: "cpu" if memory is None else "cuda")
        return recommended.default_fit(
            resolve(str(folder)), read_config(folder), CalibrationConfig(dataset="micro", **forward), "auto"
        )

    return choose


def test_it_is_trained_where_a_gpu_has_room(llama, chosen, caplog):
    caplog.set_level("INFO")
    assert chosen(llama, 10**9) == recommended.RECOMMENDED and "`--objective l2`" in caplog.text
    for memory, reason in ((None, "takes long without a GPU"), (1000, "less is free")):
        caplog.clear()
        assert chosen(llama, memory) == FitConfig() and reason in caplog.text
    for forward in ({"load_in_4bit": True}, {"streaming": "always"}, {"samples": 1}):
        assert chosen(llama, 10**9, **forward) == FitConfig()


def test_other_architectures_take_least_squares(chosen, caplog):
    from tiny_families import source

    caplog.set_level("INFO")
    for variant, reason in (("qwen3_moe", "no one down projection"), ("vit", "no next token")):
        assert chosen(source(variant), 10**9) == FitConfig() and reason in caplog.text


def test_prune_takes_it_unless_a_fit_is_asked_for(llama, texts, tmp_path, monkeypatch):
    from replaceme.cli import main

    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quick = recommended.RECOMMENDED.model_copy(update={"kl_steps": 2})
    monkeypatch.setattr("replaceme.pruning.default_fit", lambda *_: quick)
    text = ["--dataset", str(tmp_path / "text.jsonl"), "--tokens", "64"]
    call = ["prune", str(llama), *text, "--blocks", "2", "--no-verify", "--device", "cpu"]
    for more, is_trained in (([], True), (["--objective", "l2"], False)):
        out = tmp_path / str(is_trained)
        assert main([*call, *more, "--out", str(out)]) == 0
        record = json.loads((out / "replaceme.json").read_text())
        assert (record["fit"]["solver"] == "kl") == is_trained
        assert (record["cut"]["metric"] == recommended.METRIC) == is_trained


@pytest.mark.parametrize("said", [{"metric": "cosine"}, {"start": 2}, {"position": "last", "metric": "bi"}])
def test_its_cut_is_by_divergence_unless_something_says_how(said):
    assert recommended.default_cut(CutConfig(blocks=2, groups=2)) == CutConfig(blocks=2, groups=2, metric="kl")
    assert recommended.default_cut(CutConfig(blocks=2, **said)) == CutConfig(blocks=2, **said)
