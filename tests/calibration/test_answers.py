"""The model's own answers as calibration text: prompts, greedy and drawn tokens, the step, its file."""

import json
from pathlib import Path

import pytest
import torch

from replaceme.calibration.answers import answers, prompts
from replaceme.calibration.samples import PassedOver
from replaceme.calibration.tokens import load_tokens
from replaceme.cli import main
from replaceme.config.calibrations import CalibrationConfig, GenerationConfig

ORCA = {
    "conversations": [
        {"from": "system", "value": "w1 w2", "weight": None},
        {"from": "human", "value": "w3", "weight": 0.0},
        {"from": "gpt", "value": "w4 w5", "weight": 1.0},
    ]
}


@pytest.fixture
def orca(tmp_path):
    """A file of ten conversations in the schema of SlimOrca, of which the last two ask nothing."""
    rows = [json.loads(json.dumps(ORCA).replace("w3", f"w{10 + k}")) for k in range(8)]
    rows += [{"conversations": [{"from": "gpt", "value": "w4", "weight": 1.0}]}, {"conversations": []}]
    path = tmp_path / "orca.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(path, **options):
    return CalibrationConfig(dataset=str(path), **{"samples": 8, "tokens": 40, "batch_size": 3, **options})


@pytest.fixture(scope="module")
def loaded(llama):
    from replaceme.models.loading import load_causal_model, load_tokenizer

    return load_causal_model(llama, "float32", "cpu"), load_tokenizer(llama)


def test_prompts_are_the_turns_before_the_first_answer(orca, tokenizer):
    found = list(prompts(asked(orca, conversations="conversations"), tokenizer, 40, PassedOver("orca")))
    assert len(found) == 8
    for prompt in found:
        system, user = prompt.source
        assert system == {"role": "system", "content": "w1 w2"} and user["role"] == "user"
        assert prompt.ids == [1, 7, 8, 3, 4, 6 + int(user["content"][1:]), 3]  # <unk> for `system`
    none = prompts(asked(orca, conversations="conversations"), tokenizer, 6, PassedOver("orca"))
    assert not list(none), "longer ones are passed over"


def test_greedy_answers_are_the_likeliest_tokens(orca, loaded):
    """Against one argmax after another, without cache and without padding."""
    model, tokenizer = loaded
    config, generation = asked(orca, conversations="conversations"), GenerationConfig(new_tokens=5, temperature=0.0)
    found = answers(model, tokenizer, config, generation)
    for prompt, record in zip(prompts(config, tokenizer, 35, PassedOver("orca")), found, strict=True):
        ids = list(prompt.ids)
        for _ in range(5):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        expected = expected.removeprefix(tokenizer.decode(prompt.ids, skip_special_tokens=True))
        assert record == {"messages": [*prompt.source, {"role": "assistant", "content": expected}]}


def test_answers_are_drawn_by_the_seed(orca, loaded):
    generation = GenerationConfig(new_tokens=6)
    state = torch.random.get_rng_state()

    def drawn(**options):
        found = answers(*loaded, asked(orca, conversations="conversations", **options), generation)
        return {one["messages"][1]["content"]: one["messages"][2]["content"] for one in found}

    zero, again, one = drawn(), drawn(), drawn(seed=1)
    assert zero == again and zero.keys() == one.keys() and zero != one
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's own draws are left alone"


def test_plain_text_is_continued(tmp_path, loaded, refuses, caplog):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"a": f"w{k}", "b": "w9 " * k}) + "\n" for k in range(1, 20)))
    config = asked(path, template="{a} {b}", tokens=12)
    found = answers(*loaded, config, GenerationConfig(new_tokens=4))
    assert len(found) == 7 and "7 prompts found, 8 asked for" in caplog.text
    assert all(set(record) == {"text"} for record in found)
    words = {word for record in found for word in record["text"].split()}
    assert all(len(word) <= 3 for word in words - {"user", "assistant"}), "no two words grew together"
    with refuses("no prompt of at most 1 tokens"):
        answers(*loaded, config.model_copy(update={"tokens": 5}), GenerationConfig(new_tokens=4))


def test_the_step_generate_and_the_tokens_of_its_file(orca, llama, tmp_path):
    out, source = str(tmp_path / "answers.jsonl"), ["--dataset", str(orca), "--conversations", "conversations"]
    sizes = ["--samples", "8", "--tokens", "40"]
    assert main(["generate", str(llama), *source, *sizes, "--new-tokens", "4", "--device", "cpu", "--out", out]) == 0
    first = Path(out).read_bytes()
    assert main(["generate", str(llama), *source, *sizes, "--new-tokens", "4", "--device", "cpu", "--out", out]) == 0
    assert Path(out).read_bytes() == first
    section = CalibrationConfig(prompts="orca", samples=8, tokens=40, generation=GenerationConfig(new_tokens=4))
    read = section.answered(out, asked(orca, conversations="conversations"))
    assert read.conversations == "messages" and (read.samples, read.tokens, read.seed) == (8, 40, 0)
    tokens = str(tmp_path / "tokens.safetensors")
    flags = ["--dataset", out, "--conversations", "messages", *sizes]
    assert main(["tokens", str(llama), *flags, "--out", tokens]) == 0
    assert len(load_tokens(tokens)[0]) == 8


def test_python_users_are_sent_to_the_steps(llama, tmp_path, refuses):
    from replaceme.api import prune

    with refuses("prune: mix and prompts name calibrations of a config.yaml", "steps `mix` and `generate`"):
        prune(llama, CalibrationConfig(mix={"a": 1.0}), blocks=2, out=tmp_path / "out")
