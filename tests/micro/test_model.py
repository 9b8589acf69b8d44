"""The shipped model: plain Hugging Face files, a tokenizer without unknown words, and knowledge of its world."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from replaceme.micro import tasks, tokenizer, world

FOLDER = Path(__file__).parents[2] / "resources" / "micro"


@pytest.fixture(scope="module")
def shipped_tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_files():
    assert (FOLDER / "model.safetensors").stat().st_size <= 26_000_000
    facts = json.loads((FOLDER / "training.json").read_text())
    assert sum(facts["recipe"]["growth"]) == json.loads((FOLDER / "config.json").read_text())["num_hidden_layers"]


def test_is_a_plain_llama(model):
    assert type(model) is LlamaForCausalLM
    assert model.config.num_hidden_layers % 8 == 0
    assert sum(parameter.numel() for parameter in model.parameters()) <= 13_000_000
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_vocabulary_is_what_the_code_builds(shipped_tokenizer):
    words = tokenizer.vocabulary()
    assert shipped_tokenizer.convert_ids_to_tokens(list(range(len(words)))) == words
    text = next(world.documents(5))
    index = shipped_tokenizer.get_vocab()
    assert shipped_tokenizer(text)["input_ids"] == tokenizer.encode(text, index)[:-1]
    assert tokenizer.build(words)(text)["input_ids"] == shipped_tokenizer(text)["input_ids"]


def test_no_word_is_unknown(shipped_tokenizer):
    texts = list(itertools.islice(world.documents(1), 1500))
    texts += {text for _, content in tasks.files() for text in json_strings(content)}
    for ids in shipped_tokenizer(texts)["input_ids"]:
        assert tokenizer.UNKNOWN not in ids


def json_strings(content):
    """Yield all strings of the rows of a JSON-lines file; nothing for a YAML file."""
    rows = [json.loads(line) for line in content.splitlines()] if content.startswith("{") else []
    for row in rows:
        for value in row.values():
            yield from [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []


def test_context_and_choice_tokenise_apart(shipped_tokenizer):
    for name in tasks.MULTIPLE_CHOICE:
        for item in tasks.items(name, 1, 20):
            context = shipped_tokenizer(item.context)["input_ids"]
            for choice in item.choices:
                whole = shipped_tokenizer(f"{item.context} {choice}")["input_ids"]
                assert whole[:-1] == context and len(whole) == len(context) + 1


def test_knows_its_world(model, shipped_tokenizer):
    """Far above the chance of 25% on items of a seed that nothing else uses."""
    right = []
    for name in ("where", "map", "order"):
        for item in tasks.items(name, 99, 12):
            ids = torch.tensor([shipped_tokenizer(item.context)["input_ids"]])
            choices = shipped_tokenizer.convert_tokens_to_ids(list(item.choices))
            with torch.inference_mode():
                right.append(int(model(ids).logits[0, -1, choices].argmax()) == item.gold)
    assert sum(right) / len(right) > 0.6
