"""Calibrations made of others: shares, masks, order, and names that the config refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.calibration.images import Images
from replaceme.calibration.mix import mix
from replaceme.calibration.tokens import Tokens, load_tokens
from replaceme.cli import main
from replaceme.config.schema import parse
from replaceme.config.sources import made_of, shares, unmixed
from replaceme.core.errors import ReplaceMeError


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 10_000))
@settings(max_examples=100, deadline=None)
def test_shares_add_up_and_are_off_by_less_than_one(weights, samples):
    counts = shares(weights, samples)
    assert sum(counts) == samples
    assert all(abs(count - samples * w / sum(weights)) < 1 for count, w in zip(counts, weights, strict=True))


def part(samples, width, filler):
    """Return sequences of one token each time, of unequal length."""
    mask = torch.arange(width)[None] <= torch.arange(samples)[:, None] % width
    return Tokens(torch.where(mask, filler + torch.arange(samples)[:, None], 0), mask)


def test_a_mix_has_the_first_samples_of_each_part_and_masks_what_it_pads():
    parts = [part(10, 4, 100), part(20, 7, 200)]
    mixed, counts = mix(parts, [1, 3], 12, seed=0)
    assert counts == [3, 9] and mixed.mask.shape == (12, 7)
    expected = [row[m].tolist() for p, n in zip(parts, counts, strict=True)
                for row, m in zip(p.input_ids[:n], p.mask[:n], strict=True)]  # fmt: skip
    found = [row[m].tolist() for row, m in zip(mixed.input_ids, mixed.mask, strict=True)]
    assert sorted(found) == sorted(expected) and found != expected
    assert mixed.count == parts[0].first(3).count + parts[1].first(9).count


def test_a_mix_is_shuffled_by_its_seed():
    parts = [part(10, 4, 100), part(20, 7, 200)]
    zero, again, one = (mix(parts, [1, 1], 20, seed)[0] for seed in (0, 0, 1))
    assert zero.digest() == again.digest() != one.digest()
    assert sorted(map(str, zero.input_ids.tolist())) == sorted(map(str, one.input_ids.tolist()))


def test_a_part_that_is_too_short_gives_what_it_has(caplog):
    mixed, counts = mix([part(2, 4, 100), part(20, 7, 200)], [1, 1], 10, seed=0)
    assert len(mixed) == 7 and counts == [2, 5]
    assert "part 1 of the mix has 2 samples, 5 asked for" in caplog.text


def test_mixes_that_cannot_be(refuses):
    images = Images(torch.ones(4, 3, 2, 2), 5)
    with refuses("text and images cannot be mixed"):
        mix([part(4, 4, 100), images], [1, 1], 4, seed=0)
    with refuses("images of unequal size"):
        mix([images, Images(torch.ones(4, 3, 4, 4), 17)], [1, 1], 4, seed=0)
    with refuses("nothing of part 1"):
        mix([images, images], [0.001, 1], 4, seed=0)
    both, _ = mix([images, Images(torch.zeros(4, 3, 2, 2), 5)], [1, 1], 6, seed=0)
    assert both.pixels.mean((1, 2, 3)).sort().values.tolist() == [0, 0, 0, 1, 1, 1] and both.mask.shape == (6, 5)


def test_the_step_mix(tmp_path, capsys):
    for k, one in enumerate([part(10, 4, 100), part(20, 7, 200)]):
        one.save(tmp_path / f"{k}.safetensors", {"dataset": f"set {k}"})
    files = [str(tmp_path / f"{k}.safetensors") for k in range(2)]
    out = str(tmp_path / "mixed.safetensors")
    assert main(["mix", *files, "--weights", "1", "3", "--samples", "12", "--seed", "4", "--out", out]) == 0
    mixed, record = load_tokens(out)
    assert mixed.digest() == mix([part(10, 4, 100), part(20, 7, 200)], [1, 3], 12, 4)[0].digest()
    assert [(one["dataset"], one["taken"]) for one in record["mix"]] == [("set 0", 3), ("set 1", 9)]
    for weights, message in ((["1"], "1 weights for 2 files"), (["1", "-1"], "mix.part-2")):
        assert main(["mix", *files, "--weights", *weights, "--out", out]) == 1
        assert message in capsys.readouterr().err


# ---- calibrations that name others

NAMES = {
    "text": {"dataset": "x.jsonl"},
    "more": {"dataset": "micro", "samples": 9},
    "pictures": {"images": "generated"},
}
REST = {
    "models": {"m": {"source": "models/m"}}, "cuts": {"n": {"blocks": 1}}, "fits": {"f": {}},
    "tables": {"t": {"models": ["m"], "calibrations": ["text"], "cuts": ["n"], "fits": ["f"], "evaluation": None}},
}  # fmt: skip


def config(**calibrations):
    return parse({**REST, "calibrations": {**NAMES, **calibrations}}, "x")


def test_what_calibrations_are_made_of():
    found = config(
        both={"mix": {"text": 1, "more": 2.5}, "samples": 10},
        own={"prompts": "text"},
        all={"mix": {"both": 1, "own": 1}, "samples": 8},
    ).calibrations
    assert made_of(found, ["all"]) == ["text", "more", "both", "own", "all"]
    assert unmixed(found, "all") == [found["text"], found["more"], found["own"]]


WRONG = {
    "a name": ({"a": {"mix": {"text": 1, "txet": 1}}}, "a.mix: 'txet' is not defined under calibrations; defined"),
    "a source": ({"a": {"prompts": "txet"}}, "a.prompts: 'txet' is not defined under calibrations"),
    "itself": ({"a": {"mix": {"a": 1}}}, "a: made of itself (a -> a); break the circle"),
    "images": ({"a": {"mix": {"text": 1, "pictures": 1}}}, "a.mix: text and images cannot be mixed (text: text, pic"),
    "too few": ({"a": {"mix": {"text": 1, "more": 1}, "samples": 20}}, "a.mix: takes 10 samples of 'more', which has"),
    "none": ({"a": {"mix": {"text": 1, "more": 0.001}, "samples": 20}}, "a.mix: none of 20 samples fall to 'more'"),
    "prompts of images": ({"a": {"prompts": "pictures"}}, "a.prompts: 'pictures' has images, not a dataset"),
    "a weight": ({"a": {"mix": {"text": 0}}}, "a.mix.text: Input should be greater than 0"),
    "no parts": ({"a": {"mix": {}}}, "a.mix: Dictionary should have at least 1 item"),
    "a mix with tokens": ({"a": {"mix": {"text": 1}, "tokens": 9}}, "a: mix takes no tokens; drop it"),
    "prompts with a template": ({"a": {"prompts": "text", "template": "{b}"}}, "a: prompts take no template; drop it"),
    "generation": ({"a": {"dataset": "x", "generation": {"new_tokens": 2}}}, "a: dataset takes no generation; drop it"),
    "long answers": ({"a": {"prompts": "text", "tokens": 512}}, "a: answers of 512 tokens leave no prompt in"),
    "two": ({"a": {"dataset": "x", "mix": {"text": 1}}}, "a: give either dataset (text) or images, or mix or prompts"),
    "template and column": ({"a": {"dataset": "x", "template": "{b}", "column": "b"}}, "template takes the place of"),
    "enough of a mix": ({"a": {"mix": {"text": 1}, "samples": "auto"}}, "a: samples auto is of texts and images as"),
    "enough of answers": ({"a": {"prompts": "text", "samples": "auto"}}, "a: samples auto is of texts and images as"),
    "a part that is enough": (
        {"a": {"mix": {"b": 1}}, "b": {"dataset": "x", "samples": "auto"}}, "a.mix: 'b' has `samples: auto`; give the"
    ),
    "template of .txt": ({"a": {"dataset": "x.txt", "template": "{b}"}}, "x.txt takes no template; drop it"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line_each(case, refuses):
    calibrations, message = WRONG[case]
    with refuses("x: calibrations.", message):
        config(**calibrations)


def test_circles_of_several():
    with pytest.raises(ReplaceMeError) as caught:
        config(a={"mix": {"b": 1}}, b={"mix": {"c": 1}}, c={"mix": {"a": 1, "text": 1}})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3 and "calibrations.b: made of itself (b -> c -> a -> b)" in lines[1]


def test_the_parts_of_a_mix_are_checked_before_any_job(llama, refuses, tmp_path):
    from replaceme.planning.check_local import check_inputs

    def check(**calibrations):
        raw = {**REST, "calibrations": {**NAMES, **calibrations}, "models": {"m": {"source": str(llama)}}}
        raw["speed"] = {"prompt_tokens": 8}
        raw["tables"] = {"t": {**REST["tables"]["t"], "calibrations": ["a"]}}
        check_inputs(parse(raw), "x")

    (tmp_path / "x.jsonl").write_text('{"text": "w1"}\n')
    text = {"dataset": str(tmp_path / "x.jsonl"), "tokens": 64}
    check(text=text, a={"mix": {"text": 1}})
    with refuses("x: calibrations.text: x.jsonl: no such file"):
        check(text={**NAMES["text"], "tokens": 64}, a={"mix": {"text": 1}})
    with refuses("x: calibrations.text on models.m: ", "sequences of 900 tokens"):
        check(text={**text, "tokens": 900}, a={"mix": {"text": 1}})
    with refuses("x: calibrations.a on models.m: ", "a language model, which cannot be calibrated on images"):
        check(a={"mix": {"pictures": 1}})
