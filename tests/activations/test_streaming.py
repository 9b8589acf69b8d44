"""Forward passes block by block: the same tensors, bit by bit, with the weights of one block at a time."""

import json
from pathlib import Path

import pytest
import tiny_families
import torch

import replaceme
from replaceme.activations import open_model, streaming
from replaceme.activations.capture import Wanted, capture
from replaceme.activations.open_model import load_model
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.distances import measure
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.families import FAMILIES
from replaceme.models.loading import Held, load_base_model
from replaceme.models.model_config import family_of

EVERYTHING = Wanted(*(frozenset({1, 3, 4}) for _ in range(4)))


def both(folder, dtype="float32"):
    """Return the whole model, and the streamed one."""
    return load_base_model(folder, dtype, "cpu"), load_model(folder, dtype, "cpu", False, Held(streaming="always"))


def same(one, other):
    assert torch.equal(one.mask, other.mask)
    for name in streaming.STORES:
        stores = getattr(one, name), getattr(other, name)
        assert stores[0].keys() == stores[1].keys()
        for block, tensor in stores[0].items():
            assert torch.equal(tensor[one.mask], stores[1][block][one.mask]), (name, block)


@pytest.mark.parametrize("variant", tiny_families.VARIANTS)
def test_every_family_gives_the_same_bits(variant, refuses):
    folder = tiny_families.source(variant)
    family = family_of(open_checkpoint(folder).config, variant)
    if family.modality == "image":
        with refuses("encoders are not streamed", "streaming: never"):
            both(folder)
        return
    inputs = frozenset() if family.gate is None else EVERYTHING.mlp_input
    down = frozenset() if family.mixture else EVERYTHING.down_input
    halves = frozenset() if family.attention is None else frozenset({2.5})
    wanted = Wanted(EVERYTHING.hidden_states | halves, EVERYTHING.mlp_output | halves, inputs, down | halves)
    whole, streamed = both(folder)
    expected = list(capture(whole, family, [tiny_families.samples(variant)], wanted))
    if family.mixture:
        with refuses("named otherwise than in transformers", "streaming: never"):
            list(capture(streamed, family, [tiny_families.samples(variant)], wanted))
        return
    same(expected[0], next(capture(streamed, family, [tiny_families.samples(variant)], wanted)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spilled", [False, True])
def test_batches_shards_and_states_in_a_file(sharded, make_tokens, dtype, spilled, monkeypatch):
    if spilled:
        monkeypatch.setattr(streaming, "HOST_SHARE", 0.0)
    tokens = make_tokens(side="left")
    whole, streamed = both(sharded, dtype)
    batches = tokens.batches(5)
    for one, other in zip(
        *(capture(model, FAMILIES["llama"], batches, EVERYTHING) for model in (whole, streamed)), strict=True
    ):
        same(one, other)


def test_one_block_has_weights_at_a_time_and_none_after(llama, make_tokens, monkeypatch):
    streamed = load_model(llama, "float32", "cpu", False, Held(streaming="always"))
    blocks, counts = FAMILIES["llama"].block_modules(streamed), []

    def held():
        return [number for number, block in enumerate(blocks) if not next(block.parameters()).is_meta]

    plain = streaming.forward
    monkeypatch.setattr(streaming, "forward", lambda *given: counts.append(held()) or plain(*given))
    list(capture(streamed, FAMILIES["llama"], make_tokens().batches(8), Wanted(frozenset({1, 3}))))
    assert counts == [[0]] * 3 + [[1]] * 3 + [[2]] * 3 + [[3]] * 3 and held() == []


def test_distances_are_the_same(gemma, make_tokens):
    family = FAMILIES["gemma3_text"]
    whole, streamed = (measure(model, family, make_tokens(), 8) for model in both(gemma))
    assert all(torch.equal(matrix, streamed[name]) for name, matrix in whole.items())


def test_nan_is_named(make_llama, make_tokens, refuses):
    def spoil(model):
        model.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan

    streamed = load_model(make_llama(edit=spoil), "float32", "cpu", False, Held(streaming="always"))
    with refuses("NaN or infinity in the output of block 2"):
        list(capture(streamed, FAMILIES["llama"], make_tokens().batches(8), Wanted(frozenset({4}))))


def test_auto_streams_what_does_not_fit(llama, monkeypatch, refuses):
    assert not hasattr(load_model(llama, "float32", "cpu", False, Held(streaming="auto")), "streamed")
    monkeypatch.setattr(streaming, "free_memory", lambda device, gpus: 1000)
    assert hasattr(load_model(llama, "float32", "cpu", False, Held(streaming="auto")), "streamed")
    assert not hasattr(load_model(llama, "float32", "cpu", False, Held(streaming="never")), "streamed")
    with refuses("the loss of a model needs all of it"):
        load_model(llama, "float32", "cpu", True, Held(streaming="auto"))


def test_auto_streams_what_a_gpu_has_no_room_for_any_more(llama, monkeypatch, caplog):
    """Another job took the room after it was measured."""

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(open_model, "needed", lambda *_: False)
    monkeypatch.setattr(open_model, "load_base_model", full)
    monkeypatch.setattr(open_model, "load_streamed", lambda checkpoint, *_: checkpoint)
    assert load_model(llama, "float32", "cuda", False, Held(streaming="auto")).folder == Path(llama)
    assert f"{llama}: the GPU had room" in caplog.text and caplog.text.strip().endswith("; streamed")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        load_model(llama, "float32", "cuda", False, Held(streaming="never"))


@pytest.mark.parametrize("fit", [{}, {"placement": "down_proj", "recycle": 0.25, "objective": "cosine"}])
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_prune_gives_the_same_weights(source, fit, request, texts, tmp_path):
    folder, found = request.getfixturevalue(source), []
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for setting in ("never", "always"):
        calibration = CalibrationConfig(dataset=str(path), samples=24, tokens=20, streaming=setting)
        replaceme.prune(folder, calibration, blocks=2, fit=FitConfig(**fit), out=tmp_path / setting, verify=False)
        found.append((tmp_path / setting / "model.safetensors").read_bytes())
    assert found[0] == found[1]


def test_a_sequential_estimation_is_refused(llama, texts, tmp_path, refuses):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    calibration = CalibrationConfig(dataset=str(path), samples=24, tokens=20, streaming="always")
    cut = CutConfig(blocks=2, groups=2, adjacency="separate", metric="cosine")
    with refuses("sequential", "streaming: never"):
        replaceme.prune(llama, calibration, cut=cut, fit=FitConfig(estimation="sequential"), out=tmp_path / "out")


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_the_same_bits_on_a_gpu(source, request, make_tokens):
    folder = request.getfixturevalue(source)
    family = family_of(open_checkpoint(folder).config, source)
    whole = load_base_model(folder, "bfloat16", "cuda")
    streamed = load_model(folder, "bfloat16", "cuda", False, Held(streaming="always"))
    batches = make_tokens(side="left").batches(5)
    found = [list(capture(model, family, batches, EVERYTHING)) for model in (whole, streamed)]
    for one, other in zip(*found, strict=True):
        same(one, other)
