"""Speed: counts are exact, rates are positive and consistent, wrong requests are refused."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from replaceme.config.evaluations import SpeedConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation.clocks import clock
from replaceme.evaluation.speed import one_repeat, speed, workload
from replaceme.models.loading import RunsOn
from replaceme.probing.describe import tiny_of
from replaceme.probing.model import build
from replaceme.provenance.environment import hardware, versions


def save(folder, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
def test_counts(tmp_path, tied):
    folder = save(tmp_path / "model", tied)
    found = speed(folder, SpeedConfig(prompt_tokens=16, new_tokens=4, repeats=3, warmup=1))
    block = 4 * 32 * 32 + 3 * 32 * 48 + 2 * 32
    assert found["non_embedding_parameters"] == 2 * block + 32
    assert found["parameters"] == found["non_embedding_parameters"] + 50 * 32 * (1 if tied else 2)
    assert found["file_bytes"] == (folder / "model.safetensors").stat().st_size
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert found[rate]["median"] > 0 and found[rate]["interquartile_range"] >= 0
    assert found["peak_memory_bytes"] > found["file_bytes"]
    assert found["cache_bytes_per_token"] == 2 * 2 * 32 * 4, "blocks, keys and values, channels, float32"
    json.dumps(found, allow_nan=False)


def test_medians_and_work_done(tmp_path, monkeypatch):
    from replaceme.evaluation import speed as module

    asked = []
    seconds = iter([(9, 9), (1, 1), (2, 4), (4, 16)])
    monkeypatch.setattr(module, "one_repeat", lambda _, load: asked.append(load.prompt) or next(seconds))
    found = speed(
        save(tmp_path / "model", True), SpeedConfig(prompt_tokens=8, new_tokens=4, batch_size=2, repeats=3, warmup=1)
    )
    assert found["prefill_tokens_per_s"] == {"median": 8.0, "interquartile_range": 6.0}, "16, 8 and 4 tokens/s"
    assert found["decode_tokens_per_s"] == {"median": 2.0, "interquartile_range": 3.75}, "8, 2 and 0.5 tokens/s"
    assert found["latency_s"] == {"median": 6.0, "interquartile_range": 9.0}, "2, 6 and 20 seconds"
    assert asked[0].shape == (2, 8) and asked[0].unique().numel() > 4


def test_decoding_is_greedy_generation(tmp_path):
    from transformers import AutoModelForCausalLM

    from replaceme.evaluation.speed import Workload, one_repeat

    model = AutoModelForCausalLM.from_pretrained(save(tmp_path / "model", False)).eval()
    seen = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    prompt = torch.arange(10)[None]
    with torch.inference_mode():
        one_repeat(model, Workload(prompt, 5, clock("wall", "cpu"), {"logits_to_keep": 1}))
    hook.remove()
    ours = torch.cat(seen, dim=1)
    theirs = model.generate(prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert [ids.shape[1] for ids in seen] == [10, 1, 1, 1, 1, 1], "the cache must be used"
    assert torch.equal(ours, theirs)


def test_too_long_is_refused(tmp_path):
    with pytest.raises(ReplaceMeError, match="68 together, the model takes 64"):
        speed(save(tmp_path / "model", True), SpeedConfig(prompt_tokens=64, new_tokens=4))


def test_unknown_dtype_and_folder(tmp_path):
    with pytest.raises(ReplaceMeError, match="no such folder"):
        speed(tmp_path / "none", SpeedConfig())
    with pytest.raises(ReplaceMeError, match="'float7' is not a torch type"):
        speed(save(tmp_path / "model", True), SpeedConfig(), RunsOn(dtype="float7"))


def test_provenance_says_nothing_private():
    import getpass
    import platform

    text = json.dumps([versions(), hardware()])
    assert versions()["torch"].startswith("2.") and hardware()["cores"] >= 1 and hardware()["memory_bytes"] > 2**28
    for private in (platform.node(), f"/{getpass.getuser()}"):
        assert private not in text


def test_a_gpu_is_made_ready_before_its_memory_is_counted(monkeypatch, tmp_path):
    """In a process that has not used a GPU yet, torch calls it an invalid device."""
    done = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.init", lambda: done.append("init"))
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", done.append)
    monkeypatch.setattr("replaceme.evaluation.speed.load_text_model", lambda *_: pytest.fail("no further"))
    with pytest.raises(pytest.fail.Exception):
        speed(save(tmp_path / "model", True), SpeedConfig(), RunsOn("cuda"))
    assert done == ["init", 0, 1]


@pytest.mark.parametrize("model_type", ["mamba", "mamba2", "recurrent_gemma"])
def test_decoding_goes_on_from_states_wherever_a_model_keeps_them(model_type):
    """The last logits are those of one pass over the prompt and all tokens after it."""
    model = build(tiny_of(AutoConfig.for_model(model_type).to_dict(), model_type))
    calls = []
    model.register_forward_hook(lambda _, given, output: calls.append((given[0], output.logits[:, -1])))
    load = workload(model, torch.arange(5, 17)[None], 3)
    calls.clear()
    with torch.inference_mode():
        for _ in range(2):  # the second from an empty cache again
            one_repeat(model, load)
        expected = model(torch.cat([ids for ids, _ in calls[4:]], 1), use_cache=False).logits[:, -1]
    assert [ids.shape[1] for ids, _ in calls[:8]] == [12, 1, 1, 1] * 2
    assert (calls[7][1] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_clock_of_kernels_needs_a_gpu(tmp_path, refuses):
    with refuses("speed.clock: kernels are those of a GPU, not of cpu; take `wall`"):
        speed(save(tmp_path / "model", True), SpeedConfig(prompt_tokens=8, new_tokens=2, clock="kernels"))


def test_the_wall_clock_times_what_it_is_given():
    done = []
    assert clock("wall", "cpu")(lambda: (time.sleep(0.05), done.append(1))) >= 0.05 and done == [1]


@pytest.mark.parametrize("microseconds", [(1.5e6, 2.5e5), ()])
def test_a_clock_of_kernels_adds_up_what_the_driver_reports(monkeypatch, refuses, microseconds):
    """With the profiler and the GPU stood in for: earlier work has ended before the profile begins."""
    happened = []

    class Profile:
        def __init__(self, activities):
            happened.append("profile")

        __enter__, __exit__ = lambda self: self, lambda *_: None

        def key_averages(self):
            return [SimpleNamespace(self_device_time_total=one) for one in microseconds]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: happened.append("synchronize"))
    seconds = clock("kernels", "cuda")
    if microseconds:
        assert seconds(lambda: happened.append("work")) == 1.75
        assert happened == ["synchronize", "profile", "work", "synchronize"]
    else:
        with refuses("the driver reports no kernels"):
            seconds(lambda: None)
