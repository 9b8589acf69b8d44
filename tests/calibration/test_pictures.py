"""Calibration with pictures in the prompts: what is captured is what the whole model computes."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_pictured import gemma3, llava, words
from transformers import AutoProcessor

import replaceme
from replaceme.activations.capture import Wanted, capture
from replaceme.activations.divergence import log_probabilities
from replaceme.activations.language_loss import are_counted
from replaceme.calibration.images import generated
from replaceme.calibration.mix import mix
from replaceme.calibration.sequences import Pictured
from replaceme.calibration.tokens import calibration_and_more, calibration_for, load_tokens
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.sources import source_problems
from replaceme.core.validation import validated
from replaceme.fitting.held_out import compare_predictions
from replaceme.models.family import SECTION, Family
from replaceme.models.loading import load_causal_model
from replaceme.models.model_config import check_calibration
from replaceme.models.probed import PROPOSED

FAMILY = Family(
    blocks="language_model.model.layers", modules="language_model.layers", section=SECTION,
    head=("language_model.lm_head",),
)  # fmt: skip
EACH = {"gemma3": 4, "llava": 16}  # tokens of a picture


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Spare the probe of the two types."""
    monkeypatch.setitem(PROPOSED, "llava", FAMILY)
    monkeypatch.setitem(PROPOSED, "gemma3", replace(FAMILY, mlp_output="post_feedforward_layernorm", tied=True))


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that saves a tiny model of texts and pictures with its processor, and returns its folder."""
    made = {}

    def folder_of(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            torch.manual_seed(0)
            for one in {"gemma3": gemma3, "llava": llava}[kind](words()):
                one.save_pretrained(made[kind])
        return made[kind]

    return folder_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of six records of one or two pictures, the first of which is unusable: its picture is missing."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": "w1", "chat": [{"role": "user", "content": "w1"}], "shown": "none.png"}]
    for k in range(6):
        generated(3, k).resize((20 + 4 * k, 40 - 2 * k)).save(folder / f"{k}.png")
        shown = f"{k}.png" if k % 2 else [f"{k}.png", f"{(k + 1) % 6}.png"]
        places = "w1 <image> w2" if k % 2 else "w1" if k == 2 else "<image> w5 <image>"
        chat = [{"from": "human", "value": places}, {"from": "gpt", "value": "w3 " * k + "w4"}]
        rows.append({"text": f"{places} w{k}" + " w7" * k, "chat": chat, "shown": shown})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def asked(data, **options):
    text = {} if "column" in options else {"conversations": "chat"}
    return CalibrationConfig(
        **{"dataset": str(data), "pictures": "shown", "samples": 6, "tokens": 80, **text, **options}
    )


def whole_model_s(model, folder, tokens, number):
    """Return states and logits of a sequence by the whole model's own forward, unpadded, of what was stored for it."""
    one = tokens[number : number + 1]
    length = one.count
    given = {name: value[:, :length] if name in one.by_token else value for name, value in one.beside.items()}
    with torch.inference_mode():
        return model(input_ids=one.input_ids[:, :length], **given, output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("kind", EACH)
def test_states_are_those_of_the_whole_model(make, data, tmp_path, kind):
    folder, config = make(kind), asked(data)
    made, record = calibration_for(folder, config)
    made.save(tmp_path / "t.safetensors", record)
    tokens, stored = load_tokens(tmp_path / "t.safetensors")
    assert isinstance(tokens, Pictured) and tokens.digest() == calibration_for(folder, config)[0].digest()
    assert stored["pictures"] == "shown" and stored["pack"] is False
    pictures = torch.tensor([len(one) for one in tokens.by_picture["pixel_values"]])
    assert sorted(pictures.tolist()) == [1, 1, 1, 2, 2, 2]
    assert torch.equal(tokens.picture_tokens.sum(1), EACH[kind] * pictures)
    assert not (are_counted(tokens) & tokens.picture_tokens[:, 1:]).any() and tokens.mask[tokens.picture_tokens].all()
    model = load_causal_model(folder, "float32", "cpu")
    found = list(capture(model.base_model, FAMILY, tokens.batches(4), Wanted(frozenset({1, 3}), frozenset({2}))))
    predictions = log_probabilities(model, tokens).split(tokens.mask.sum(1).tolist())
    assert sum(int(one.mask.sum()) for one in found) == tokens.count
    for number in range(6):
        batch, place = found[number // 4], number % 4
        expected = whole_model_s(model, folder, tokens, number)
        for state in (1, 3):
            mine = batch.hidden_states[state][place][batch.mask[place]]
            torch.testing.assert_close(mine, expected.hidden_states[state + 1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(predictions[number], expected.logits[0].log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", EACH)
def test_a_record_is_what_the_processor_makes_of_it(make, data, kind):
    folder = make(kind)
    tokens, _ = calibration_for(folder, asked(data, column="text", samples=9))
    processor = AutoProcessor.from_pretrained(folder)
    mark = {"gemma3": "<start_of_image>", "llava": "<image>"}[kind]
    pictures = [generated(3, k).resize((20 + 4 * k, 40 - 2 * k)) for k in (2, 3)]
    expected = processor(text=[mark * 2 + "w1 w2 w7 w7"], images=[pictures], return_tensors="pt")
    length = expected["input_ids"].shape[1]
    [number] = [
        k for k, ids in enumerate(tokens.input_ids) if ids[:length].tolist() == expected["input_ids"][0].tolist()
    ]
    assert torch.equal(tokens.by_picture["pixel_values"][number], expected["pixel_values"])
    assert tokens.mask[number].sum() == length and set(tokens.beside) == set(expected) - {"input_ids", "attention_mask"}


def test_a_model_is_shortened_on_pictures(make, data, tmp_path):
    config, out = asked(data, batch_size=2), tmp_path / "out"
    kl = FitConfig(objective="kl", kl_steps=2)
    replaceme.prune(
        make("llava"), config, cut=CutConfig(blocks=2, metric="cosine"), fit=kl, out=out, device="cpu", verify=False
    )
    found = json.loads((out / "replaceme.json").read_text())
    assert found["origin"]["calibration"]["pictures"] == "shown"
    model, (tokens, further, _) = (
        load_causal_model(out, "float32", "cpu"),
        calibration_and_more(make("llava"), asked(data, samples=4), 9),
    )
    assert len(model.model.language_model.layers) == 3 and len(further) == 2
    same = compare_predictions(model, FAMILY, [], [], tokens)
    assert same.kl == 0 and same.tokens == int(are_counted(tokens).sum()) < tokens.count - tokens.picture_tokens.sum()


def test_refusals(make, data, llama, tmp_path, refuses):
    with refuses("pictures are not packed"):
        validated(CalibrationConfig, {"dataset": "a/b", "pictures": "p", "pack": True}, "c")
    with refuses("micro takes no pictures"):
        validated(CalibrationConfig, {"dataset": "micro", "pictures": "p"}, "c")
    sections = {"a": {"dataset": "a/b", "pictures": "p"}, "m": {"mix": {"a": 1}}, "g": {"prompts": "a"}}
    mixed, asks = source_problems(sections)
    assert "calibrations.m.mix: a has pictures" in mixed and "calibrations.g.prompts: 'a' has pictures" in asks
    tokens, _ = calibration_for(make("llava"), asked(data))
    with refuses("pictures cannot be mixed"):
        mix([tokens, tokens], [1, 1], 4, 0)
    with refuses("a model of text alone"):
        check_calibration(json.loads((llama / "config.json").read_text()), asked(data), "m")
    with refuses("no usable processor of texts and pictures"):
        calibration_for(llama, asked(data))
    with refuses("no column 'seen'"):
        calibration_for(make("llava"), asked(data, pictures="seen"))
    with refuses("no such file"):
        (tmp_path / "one.jsonl").write_text(data.read_text().splitlines()[0])
        calibration_for(make("llava"), asked(tmp_path / "one.jsonl"))
    with refuses("tokens with its pictures, of which none is cut off; raise `tokens` (20)"):
        (tmp_path / "one.jsonl").write_text(
            json.dumps({"chat": [{"role": "user", "content": "w1 " * 20}], "shown": str(data.parent / "1.png")})
        )
        calibration_for(make("llava"), asked(tmp_path / "one.jsonl", tokens=20))
    with refuses("1 pictures and 2 places"):
        (tmp_path / "one.jsonl").write_text(
            json.dumps({"text": "<image> <image>", "shown": str(data.parent / "1.png")})
        )
        calibration_for(make("llava"), asked(tmp_path / "one.jsonl", column="text"))
