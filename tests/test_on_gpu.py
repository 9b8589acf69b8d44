"""The pipeline on a CUDA device: the same statistics as on the CPU, the same bits twice, a checkpoint at the end."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from replaceme.activations.gather import gather_groups
from replaceme.api import heal, prune
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.evaluations import SpeedConfig
from replaceme.config.fits import FitConfig, fit_config
from replaceme.config.healings import TrainingConfig
from replaceme.core.files import sha256
from replaceme.cuts.after_fit import measure_candidates
from replaceme.cuts.distances import measure
from replaceme.evaluation.speed import speed
from replaceme.methods.registry import METHODS
from replaceme.models.families import SANDWICH, SEQUENTIAL
from replaceme.models.loading import RunsOn, load_base_model, load_causal_model

pytestmark = pytest.mark.gpu
CUT = (2, 4)


def gathered(folder, tokens, dtype, device):
    return gather_groups(load_base_model(folder, dtype, device), SEQUENTIAL, tokens.batches(4), [CUT])[0]


def relative(found, exact):
    return float((found.cpu() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 5e-2)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_statistics_agree_with_float64_on_the_cpu(llama, make_tokens, side, dtype, bound):
    tokens = make_tokens(side=side)
    exact, found = gathered(llama, tokens, "float64", "cpu"), gathered(llama, tokens, dtype, "cuda")
    assert found.tokens == exact.tokens
    assert relative(found.gram, exact.gram) < bound
    assert relative(found.cross, exact.cross) < bound


def test_two_runs_give_the_same_bits(llama, make_tokens):
    first, second = (gathered(llama, make_tokens(), "bfloat16", "cuda") for _ in range(2))
    assert torch.equal(first.gram, second.gram) and torch.equal(first.cross, second.cross)


def test_distances_agree_with_the_cpu(llama, make_tokens):
    tokens = make_tokens()
    exact = measure(load_base_model(llama, "float64", "cpu"), SEQUENTIAL, tokens, 4)
    found = measure(load_base_model(llama, "float32", "cuda"), SEQUENTIAL, tokens, 4)
    for name, matrix in exact.items():
        torch.testing.assert_close(found[name].cpu(), matrix, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("name", "family"), [("llama", SEQUENTIAL), ("gemma", SANDWICH)])
def test_candidates_agree_with_the_cpu(request, make_tokens, name, family):
    folder, tokens, held_out = request.getfixturevalue(name), make_tokens(samples=40), make_tokens(samples=6, seed=1)
    exact, found = (
        measure_candidates(load_causal_model(folder, "float32", device), family, tokens, [1, 2, 3], 8, {"": held_out})
        for device in ("cpu", "cuda")
    )
    for one, other in zip(found, exact, strict=True):
        assert one == pytest.approx(other, rel=2e-2, abs=2e-3)


@pytest.mark.parametrize(
    ("fit", "error", "at_first"), [(None, "kl", "kl_start"), (FitConfig(), "residual", "residual_identity")]
)
def test_prune_ends_with_the_same_checkpoint_twice(tmp_path, fit, error, at_first):
    """Of the fit that is taken unasked, and of least squares."""
    calibration = CalibrationConfig(dataset="micro", samples=32, tokens=128, seed=5)
    given = {} if fit is None else {"fit": fit}
    hashes = []
    for name in ("one", "two"):
        cut = CutConfig(blocks=6)
        record = prune("resources/micro", calibration, cut=cut, out=tmp_path / name, device="cuda", **given)
        assert record["fit"][error] < record["fit"][at_first]
        hashes.append(sha256(tmp_path / name / "model.safetensors"))
    assert hashes[0] == hashes[1]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one").cuda()
    assert torch.isfinite(model(torch.arange(4, 60, device="cuda")[None]).logits).all()


FITS = {
    "least squares": {},
    "cosine": {"objective": "cosine"},
    "exact": {"objective": "cosine_exact"},
    "adam": {"objective": "cosine", "solver": "adam"},
    "auto ridge": {"ridge": "auto"},
    "normalised": {"weighting": "inverse_energy"},
    "down projection": {"placement": "down_proj", "ridge_relative": 1e-4},
    "recycled": {"placement": "down_proj", "ridge_relative": 1e-4, "recycle": 0.25},
    "recycled-cosine": {"placement": "down_proj", "ridge_relative": 1e-3, "recycle": 0.25, "objective": "cosine"},
    "block": {"placement": "block"},
    "magnitude": {"transform": "magnitude", "placement": "upstream"},
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_every_kind_of_fit_is_that_of_the_cpu(request, tmp_path, texts, source, fit):
    folder, config = request.getfixturevalue(source), FitConfig(**FITS[fit])
    cut = CutConfig(blocks=2, start=3)
    found = [
        prune(folder, texts=texts, cut=cut, fit=config, out=tmp_path / device, device=device)["fit"]["residual"]
        for device in ("cpu", "cuda")
    ]
    assert found[1] == pytest.approx(found[0], rel=2e-2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_that_of_the_cpu(llama, texts, tmp_path, method):
    fit, ids = fit_config(method=method), torch.arange(8, 40)[None]
    logits = []
    for device in ("cpu", "cuda"):
        options = {"cut": CutConfig(blocks=2, start=3), "fit": fit, "device": device, "verify": False}
        prune(llama, texts=texts, out=tmp_path / device, **options)
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(tmp_path / device, trust_remote_code=True)
            logits.append(model(ids).logits)
    assert relative(logits[1], logits[0]) < 2e-2


@pytest.mark.parametrize("train", ["transform", "full"])
def test_healing_is_that_of_the_cpu(llama, texts, tmp_path, train):
    prune(llama, texts=texts, cut=CutConfig(blocks=2, start=3), out=tmp_path / "merged", device="cpu", verify=False)
    training = TrainingConfig(train=train, steps=3, learning_rate=0.01, batch_size=4, held_out=4)
    for device in ("cpu", "cuda"):
        heal(tmp_path / "merged", texts=texts, training=training, out=tmp_path / device, device=device, verify=False)
    found, exact = (load_file(tmp_path / device / "model.safetensors") for device in ("cuda", "cpu"))
    for name in exact:
        torch.testing.assert_close(found[name], exact[name], atol=2e-3, rtol=0)  # a step moves a weight by 0.01


def test_kernels_take_a_part_of_the_time_by_the_wall(llama):
    """The same part each time, as no host is in it."""
    options = {"prompt_tokens": 64, "new_tokens": 8, "repeats": 3, "warmup": 1}
    on_gpu = RunsOn("cuda", "bfloat16", 1)
    wall, kernels, again = (
        speed(llama, SpeedConfig(**options, clock=clock), on_gpu)["latency_s"]["median"]
        for clock in ("wall", "kernels", "kernels")
    )
    assert 0 < kernels < wall and abs(again / kernels - 1) < 0.1


def test_speed_is_measured_in_a_fresh_process(llama, tmp_path):
    """As a job of the workflow does, where nothing has used the GPU before."""
    command = [sys.executable, "-m", "replaceme.cli", "speed", str(llama), "--device", "cuda"]
    command += ["--prompt-tokens", "16", "--new-tokens", "4", "--out", str(tmp_path / "s")]
    subprocess.run(command, check=True)
    assert json.loads((tmp_path / "s").read_text())["peak_memory_bytes"] > 0
