"""Preferences in generation_config.json change nothing that is computed here, and stay as they are."""

import json
import shutil

import pytest
import torch
from given import cut_of

from replaceme.calibration.answers import answers
from replaceme.config.calibrations import CalibrationConfig, GenerationConfig
from replaceme.evaluation.lm_eval import language_model
from replaceme.models.loading import load_base_model, load_causal_model, load_tokenizer
from replaceme.surgery.fold import merge
from replaceme.transforms.closed_form import fit_identity
from replaceme.verification import reload_worker as plain

# several at once, as far as transformers lets them stand together; each would change greedy tokens, or cannot be run
PREFERENCES = [
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_length": 30, "suppress_tokens": [7, 8], "top_p": 0.5},
    {"bad_words_ids": [[5], [6]], "forced_bos_token_id": 9, "forced_eos_token_id": 3, "max_length": 3, "min_p": 0.2},
    {"begin_suppress_tokens": [10, 11], "exponential_decay_length_penalty": [2, 1.5], "typical_p": 0.3},
    {"sequence_bias": [[[12], 50.0]], "renormalize_logits": True, "max_time": 1e-9, "return_dict_in_generate": True},
    {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True, "num_return_sequences": 2},
    {"guidance_scale": 1.5, "watermarking_config": {"greenlist_ratio": 0.3}, "output_scores": True},
    {"stop_strings": ["w1"], "token_healing": True, "encoder_repetition_penalty": 1.2, "min_new_tokens": 9},
    {"penalty_alpha": 0.6, "top_k": 4, "cache_implementation": "static", "use_cache": False},
    {"dola_layers": "high", "is_assistant": True, "assistant_early_exit": 2},
    {"prompt_lookup_num_tokens": 3, "force_words_ids": [[[5]]], "temperature": 0.1, "do_sample": True},
]


@pytest.fixture
def preferring(llama, tmp_path):
    """A function that gives a copy of a Llama the preferences of an author."""
    folder = shutil.copytree(llama, tmp_path / "source")

    def prefer(entries):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "pad_token_id": 0, **entries}))
        return folder

    return prefer


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"text": f"w{k} w{k + 7} w{k + 2}"}) + "\n" for k in range(4)))
    return CalibrationConfig(dataset=str(path), samples=4, tokens=16)


def greedy(folder, rows, new_tokens):
    """Decode one likeliest token after another, by the forward pass alone."""
    model = load_causal_model(folder, "float32", "cpu")
    for _ in range(new_tokens):
        rows = torch.cat([rows, model(rows).logits[:, -1:].argmax(-1)], 1)
    return rows


def test_answers_and_checks_are_by_the_model_alone(preferring, prompts):
    ids = torch.arange(6, 26).view(2, 10)
    expected = {}
    for temperature in (0.0, 1.0):
        folder, generation = preferring({}), GenerationConfig(new_tokens=8, temperature=temperature)
        loaded = load_causal_model(folder, "float32", "cpu"), load_tokenizer(folder)
        expected[temperature] = answers(*loaded, prompts, generation)
    by_hand = greedy(folder, ids[:1], 6)
    for entries in PREFERENCES:
        folder = preferring(entries)
        loaded = load_causal_model(folder, "float32", "cpu"), load_tokenizer(folder)
        for temperature, found in expected.items():
            generation = GenerationConfig(new_tokens=8, temperature=temperature)
            assert answers(*loaded, prompts, generation) == found, entries
        as_any_user = plain._model("AutoModelForCausalLM", {"pretrained_model_name_or_path": str(folder)}, "cpu")
        plain._generate(as_any_user, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 8)
        lm = language_model(*loaded, 1)
        found = lm._model_generate(ids[:1], max_length=16, stop=[])
        assert torch.equal(found[:, :16], by_hand[:, : found.shape[1]]), entries


def test_the_file_stays_its_authors(preferring, tmp_path):
    folder = preferring(PREFERENCES[0])
    merge(folder, cut_of([[2, 4]], 6), [fit_identity(hidden_size=16)], tmp_path / "out", {})
    name = "generation_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("entries", "said"),
    [({"num_return_sequences": 2}, "num_return_sequences"), ({"eos_token_id": "</s>"}, "`eos_token_id` is no number")],
)
def test_a_file_with_which_transformers_loads_nothing_is_told_before_work(preferring, refuses, entries, said):
    with refuses("source", said):
        load_base_model(preferring(entries), "float32", "cpu")


def test_without_the_file_special_tokens_are_those_of_config_json(preferring):
    folder = preferring({})
    (folder / "generation_config.json").unlink()
    settings = load_causal_model(folder, "float32", "cpu").generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (2, 3, 0)
