"""The parts of a healing: adapters merged, parameters in float32, the order of the sequences, schedules, options."""

import json
import re
import shutil
from itertools import pairwise

import pytest
import torch
from given import cut_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

import replaceme
from replaceme.activations.language_loss import are_counted
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import stack
from replaceme.config.cuts import CutConfig
from replaceme.config.healings import TrainingConfig
from replaceme.healing.endings import lengths_of, with_endings
from replaceme.healing.heal import curve_of, places_of
from replaceme.healing.parameters import trainable
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.loading import load_causal_model
from replaceme.models.probed import PROPOSED
from replaceme.probing.describe import describe, tiny_of
from replaceme.transforms.training import Schedule

EOS = 3


def options(train="transform", **more):
    return TrainingConfig(**{"train": train, "steps": 3, "learning_rate": 0.01, "schedule": "constant"} | more)


@pytest.mark.parametrize(("targets", "part"), [("mlp", ".mlp."), ("attention", ".self_attn."), ("all", ".layers.")])
def test_merged_adapters_have_the_logits_of_the_adapters(llama, make_tokens, targets, part):
    tokens, given = make_tokens(samples=4), options("lora", lora_rank=3, lora_alpha=6, lora_targets=targets)
    checkpoint, model = open_checkpoint(llama), load_causal_model(llama, "float32", "cpu")
    adapters = trainable(model, checkpoint, given, [3])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
        expected = model(tokens.input_ids).logits
    plain = load_causal_model(llama, "float32", "cpu")
    untouched = plain(tokens.input_ids).logits
    edits = adapters.edits()
    assert edits.keys() == {n for n in checkpoint.tensors if part in n and n.endswith("proj.weight")}
    plain.load_state_dict({name: edit(checkpoint.tensor(name)) for name, edit in edits.items()}, strict=False)
    torch.testing.assert_close(plain(tokens.input_ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert (expected - untouched).abs().max() > 0.1


def test_a_probed_model_for_pictures_whose_tensors_transformers_renames_takes_adapters(tmp_path, monkeypatch):
    folder, config = tmp_path / "model", AutoConfig.for_model("llava").to_dict()
    monkeypatch.setitem(PROPOSED, "llava", describe(config, tiny_of(config, "m"), folder).family)
    checkpoint, model = open_checkpoint(folder), load_causal_model(folder, "float32", "cpu")
    adapters = trainable(model, checkpoint, options("lora", lora_rank=3), [2])
    ids = torch.arange(4, 28).reshape(2, 12)
    with torch.no_grad():
        for parameter in adapters.parameters.values():
            parameter.copy_(torch.randn(parameter.shape) / 5)
        expected = model(ids).logits
    edits = adapters.edits()
    assert all(re.fullmatch(r"language_model\.model\.layers\.\d\.mlp\.\w+\.weight", name) for name in edits)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {name: edit(tensors[name]) for name, edit in edits.items()}, folder / "model.safetensors")
    healed = load_causal_model(folder, "float32", "cpu")
    torch.testing.assert_close(healed(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_trained_in_bfloat16_small_steps_are_kept(make_llama):
    """A step of 1e-4 of a weight vanishes in bfloat16, a hundred of them do not: the parameters are float32."""
    folder = make_llama(dtype="bfloat16")
    checkpoint, model = open_checkpoint(folder), load_causal_model(folder, "bfloat16", "cpu")
    trained = trainable(model, checkpoint, options("full", dtype="bfloat16"), [3])
    before = {name: follower.detach().clone() for name, follower in trained.followers.items()}
    with torch.no_grad():
        for _ in range(100):
            for parameter in trained.parameters.values():
                parameter.mul_(1 + 1e-4)
            trained.follow()
    for name, follower in trained.followers.items():
        torch.testing.assert_close(follower.double(), before[name].double() * 1.01, rtol=2**-8, atol=0)


@pytest.fixture
def ending(llama, tmp_path):
    """A folder whose generation_config.json has another token that ends an answer: `assistant`."""
    folder = shutil.copytree(llama, tmp_path / "model")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [EOS, 5]}))
    return folder


def ended(folder, tokenizer, rows, text):
    found = with_endings(stack(rows, tokenizer), text, folder)
    return found, [ids[mask].tolist() for ids, mask in zip(found.input_ids, found.mask, strict=True)]


def test_whole_documents_are_trained_on_with_their_end(ending, tokenizer):
    """Those cut off are not, nor those that have it; the loss counts it as it counts other tokens."""
    rows = [[7, 8], [9, 10, 11, 12], [7, 8, EOS], [7, 5], [13, 14, 15]]
    found, given = ended(ending, tokenizer, rows, {"tokens": 4})
    assert given == [[7, 8, EOS], rows[1], rows[2], rows[3], [13, 14, 15, EOS]]
    labels = [ids[1:][counted].tolist() for ids, counted in zip(found.input_ids, are_counted(found), strict=True)]
    assert labels == [row[1:] for row in given]
    _, given = ended(ending, tokenizer, rows, {"tokens": 3, "pack": True})
    assert given == [[7, 8, EOS], [*rows[1], EOS], *rows[2:]]


def test_a_mix_has_the_lengths_of_its_parts(ending, tokenizer):
    mix = {"mix": [{"tokens": 2}, {"mix": [{"tokens": 4}, {"images": "x"}]}]}
    assert lengths_of(mix) == {2, 4}
    assert ended(ending, tokenizer, [[7, 8], [7, 8, 9], [7, 8, 9, 10]], mix)[1] == [
        [7, 8],
        [7, 8, 9, EOS],
        [7, 8, 9, 10],
    ]


def test_white_space_behind_the_end_of_a_conversation(ending, tokenizer, monkeypatch):
    """As chat templates write it; other tokens behind it are text."""
    real = type(tokenizer).decode
    monkeypatch.setattr(type(tokenizer), "decode", lambda self, ids: "\n" if ids == [9] else real(self, ids))
    _, given = ended(ending, tokenizer, [[7, 5, 9], [7, 5, 10], [7, 9]], {"tokens": 8})
    assert given == [[7, 5, 9], [7, 5, 10, EOS], [7, 9, EOS]]


def test_sequences_of_unknown_length_and_tokenizers_without_an_end(ending, tokenizer, make_llama):
    tokens = stack([[7, 8], [9]], tokenizer)
    assert with_endings(tokens, {"dataset": "given"}, ending) is tokens
    (ending / "generation_config.json").unlink()
    for name, key in (("tokenizer_config.json", "eos_token"), ("config.json", "eos_token_id")):
        content = json.loads((ending / name).read_text())
        (ending / name).write_text(json.dumps({**content, key: None}))
    assert with_endings(tokens, {"tokens": 4}, ending) is tokens


def test_a_healing_on_texts_takes_them_with_their_ends(llama, texts, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def train(model, trained, tokens, *_):
        raise Seen([ids[mask][-1].item() for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True)])

    replaceme.prune(llama, texts=texts, cut=CutConfig(blocks=2, start=3), out=tmp_path / "short", verify=False)
    monkeypatch.setattr("replaceme.healing.heal.train", train)
    with pytest.raises(Seen) as caught:
        replaceme.heal(tmp_path / "short", texts=texts, training=options("full", held_out=2), out=tmp_path / "out")
    assert caught.value.args[0] == [EOS] * 38


def test_carriers_are_numbered_after_the_cut():
    assert places_of(cut_of([[3, 5]], 6)) == [3]
    assert places_of(cut_of([[2, 4], [6, 9], [10.5, 11.5]], 12)) == [2, 4, 5.5]


def test_every_sequence_once_an_epoch(make_tokens):
    tokens = make_tokens(samples=20)
    order = TextOrder(len(tokens), seed=4)
    seen = [tuple(ids.tolist()) for step in range(20) for b in order.batches(tokens, step, 3) for ids in b.input_ids]
    lengths = [len([i for i in ids if i]) for ids in seen]
    whole = sorted(int(mask.sum()) for mask in tokens.mask)
    epochs = [sorted(lengths[k : k + 20]) for k in (0, 20, 40)]
    assert epochs == [whole] * 3 and len({tuple(lengths[k : k + 20]) for k in (0, 20, 40)}) == 3
    again = TextOrder(len(tokens), seed=4)
    assert torch.equal(again.batches(tokens, 9, 3)[0].input_ids, order.batches(tokens, 9, 3)[0].input_ids)


def test_schedules():
    def rates(**more):
        return [Schedule(10, 0.5, **more).rate(step) / 0.5 for step in range(10)]

    assert rates(shape="constant") == [1.0] * 10
    assert rates(shape="linear", warmup=2) == pytest.approx([0.5, 1.0, *(1 - k / 8 for k in range(8))])
    half = rates()
    assert half[0] == 1 and half[5] == pytest.approx(0.5) and all(a > b > 0 for a, b in pairwise(half))


def test_long_curves_are_thinned():
    curve = curve_of([float(k) for k in range(1201)], options(steps=1201))
    assert len(curve) == 401 and curve[0] == {"step": 3, "loss": 1.0, "learning_rate": 0.01}
    assert curve[-1]["step"] == 1201 and curve[-1]["loss"] == 1200.0


@pytest.mark.parametrize(
    ("given", "message"),
    [({"warmup": 3}, "warmup 3 leaves nothing"), ({"clip": 0.0}, "clip"), ({"train": "qlora"}, "'transform', 'lora'")],
    ids=str,
)
def test_options_that_make_no_sense(given, message):
    with pytest.raises(ValueError, match=message):
        options(**given)
