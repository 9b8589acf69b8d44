"""What a config.json leaves out is what transformers takes for it, of every family."""

import json
import shutil

import pytest
from transformers import AutoConfig

from replaceme.activations.recycled_neurons import activation_of
from replaceme.models.checkpoints import read_config
from replaceme.models.config_defaults import accepted, value_of, with_defaults
from replaceme.models.config_json import check_types
from replaceme.models.families import FAMILIES
from replaceme.models.model_config import family_of, longest_sequence, pruned_config
from replaceme.planning.outline import estimated_outline


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_empty_config_is_that_of_its_class(model_type):
    family, usual = FAMILIES[model_type], AutoConfig.for_model(model_type)
    sizes = getattr(usual, family.section) if family.section else usual
    filled = with_defaults({"model_type": model_type}, "m")
    expected = {key: getattr(sizes, key) for key in family.needed}
    assert {key: family.sizes(filled)[key] for key in family.needed} == expected
    assert with_defaults(filled, "m") is filled or family.section
    found = family_of(filled, "m")
    root = usual.num_hidden_layers**0.5 if found.rooted else 1.0
    assert found.multiplier == getattr(usual, str(found.scaled_by), 1.0) / root
    assert not any(getattr(usual, key) == value for key, value, _ in found.refused)
    if found.modality == "text":
        assert found.ties_head(filled) == usual.tie_word_embeddings
        assert estimated_outline("m", filled).num_blocks == usual.num_hidden_layers
        assert longest_sequence(filled, "m") == getattr(usual, "max_position_embeddings", None)


def test_nothing_is_asked_for_where_all_is_said(monkeypatch):
    monkeypatch.setattr("replaceme.models.config_defaults.accepted", None)
    said = {"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 16, "vocab_size": 9}
    said["max_position_embeddings"] = 32
    assert with_defaults(said, "m") is said
    other = {"model_type": "t5"}
    assert with_defaults(other, "m") is other


def test_other_names_of_a_size_are_read_and_leave_nothing_behind():
    given = {"model_type": "gpt2", "num_hidden_layers": 6, "hidden_size": 16, "max_position_embeddings": 32}
    config = with_defaults({**given, "vocab_size": 9}, "m")
    assert config == {"model_type": "gpt2", "n_layer": 6, "n_embd": 16, "n_positions": 32, "vocab_size": 9}
    assert pruned_config(config, [(2, 4)])["n_layer"] == 4
    assert with_defaults({**config, "num_hidden_layers": 5}, "m")["n_layer"] == 5, "as transformers decides"
    assert with_defaults({"model_type": "bloom", "n_embed": 16, "n_layer": 6}, "m")["hidden_size"] == 16


def test_blocks_that_are_dense_by_default_stay_so():
    config = with_defaults({"model_type": "deepseek_v3", "num_hidden_layers": 6}, "m")
    assert pruned_config(config, [(1, 3)])["first_k_dense_replace"] == 1
    assert pruned_config(with_defaults({"model_type": "deepseek_v2"}, "m"), [(1, 3)])["first_k_dense_replace"] == 0


def test_an_old_section_beside_that_of_the_tower_counts_as_it_does_in_transformers():
    entries = {
        "vision_config": {"num_hidden_layers": 6, "patch_size": 8},
        "vision_config_dict": {"num_hidden_layers": 5},
    }
    config = with_defaults({"model_type": "clip", **entries}, "m")
    usual = AutoConfig.for_model("clip", **entries).vision_config
    sizes = pruned_config(config, [(2, 4)])
    assert (sizes["vision_config"]["num_hidden_layers"], sizes["vision_config"]["patch_size"]) == (3, usual.patch_size)
    assert "vision_config_dict" not in sizes
    check_types(config, "m")


def test_a_huge_number_of_blocks_is_not_counted_out():
    config = with_defaults({"model_type": "qwen2", "num_hidden_layers": 2**31 - 1}, "m")
    assert config["num_hidden_layers"] == 2**31 - 1


def test_values_of_single_entries():
    assert value_of({"model_type": "mistral"}, "num_key_value_heads", "m") == 8
    assert value_of({"model_type": "llama", "num_attention_heads": 4}, "num_key_value_heads", "m") == 4
    assert value_of({"model_type": "llama"}, "missing", "m") is None
    assert activation_of({"model_type": "llama"}) == "silu"
    assert activation_of({"model_type": "gemma2"}) == "gelu_pytorch_tanh"


def test_what_transformers_does_not_read_is_said_with_its_name(refuses):
    with refuses("m: transformers does not read it", "num_attention_heads", "remove it"):
        accepted({"model_type": "llama", "num_attention_heads": None}, "m")
    with refuses("m: `n_positions` should be an integer"):
        with_defaults({"model_type": "gpt2", "max_position_embeddings": "many"}, "m")


@pytest.mark.parametrize("key", ["max_position_embeddings", "n_positions", "vocab_size", "tie_word_embeddings"])
def test_a_null_that_transformers_refuses_is_refused(key, refuses):
    with refuses(f"`{key}` should be", "found null", "remove the entry"):
        check_types({"model_type": "llama", key: None}, "m")


def test_a_checkpoint_that_does_not_say_its_type_has_that_of_its_weights(make_llama, tmp_path):
    folder = shutil.copytree(make_llama(dtype="bfloat16"), tmp_path / "silent")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_config(folder)["dtype"] == "bfloat16"
    (folder / "model.safetensors").unlink()
    assert "dtype" not in read_config(folder)
