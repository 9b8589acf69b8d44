"""Where architectures keep their parts, and how their configs shrink."""

import pytest

from replaceme.models.model_config import (
    FAMILIES,
    family_of,
    has_text_tower,
    pick_device,
    pick_dtype,
    pruned_config,
)

LLAMA = {"model_type": "llama", "num_hidden_layers": 6, "hidden_size": 16}


def test_block_numbers_and_names():
    family = FAMILIES["llama"]
    assert family.block_of("model.layers.12.mlp.down_proj.weight") == 12
    assert family.block_of("model.norm.weight") is None
    assert family.block_of("other.model.layers.1.x") is None
    assert family.renamed("model.layers.12.mlp.layers.3.weight", 4) == "model.layers.4.mlp.layers.3.weight"


@pytest.mark.parametrize("source", ["llama", "gemma"])
def test_parts_are_found_in_loaded_models(source, request, blocks_of):
    model, family = blocks_of(request.getfixturevalue(source))
    assert len(family.block_modules(model)) == 6
    name = type(family.mlp_modules(family.block_modules(model)[0])[0]).__name__
    assert name == {"llama": "LlamaMLP", "gemma": "Gemma3RMSNorm"}[source]


@pytest.mark.parametrize("model_type", ["t5", "clap", "", None])
def test_unsupported(refuses, model_type):
    with refuses(f"model_type {model_type!r} is not supported", "docs/models.md"):
        family_of({"model_type": model_type}, "m")


@pytest.mark.parametrize("key", ["layer_types", "no_rope_layers", "mlp_layer_types"])
def test_per_block_lists_lose_the_removed_blocks(key):
    config = {**LLAMA, key: list("abcdef"), "rope_theta": 1.0}
    assert pruned_config(config, [(2, 4)]) == {**config, "num_hidden_layers": 4, key: list("abef")}
    assert config["num_hidden_layers"] == 6, "the given config is left alone"


def test_a_per_block_list_of_another_length_is_refused(refuses):
    with refuses("layer_types has 5 entries for 6 blocks"):
        pruned_config({**LLAMA, "layer_types": list("abcde")}, [(2, 4)])


def test_a_classifier_of_images_has_no_encoder_of_texts():
    assert has_text_tower({"model_type": "clip", "architectures": ["CLIPModel"]})
    assert has_text_tower({"model_type": "siglip"})
    assert not has_text_tower({"model_type": "siglip", "architectures": ["SiglipForImageClassification"]})
    assert not has_text_tower({"model_type": "vit"})


@pytest.mark.parametrize("given", [{"out_indices": [2, 6]}, {"out_features": ["stage2", "stage6"]}])
def test_stages_of_a_backbone_by_either_entry(given, refuses):
    config = {"model_type": "dinov2", "num_hidden_layers": 6, **given}
    pruned = pruned_config(config, [(2, 4)])
    assert (pruned["out_indices"], pruned["out_features"]) == ([2, 4], ["stage2", "stage4"])
    with refuses("`out_features` names stage9"):
        pruned_config({**config, "out_indices": None, "out_features": ["stage9"]}, [(2, 4)])
    named = pruned_config({**config, "out_indices": None, "out_features": None, "stage_names": ["stem"]}, [(2, 4)])
    assert named["stage_names"] == ["stem", "stage1", "stage2", "stage3", "stage4"]


def test_device_and_dtype(refuses, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == "cpu"
    with refuses("device: cuda", "auto"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == pick_device("cuda") == "cuda"
    assert pick_dtype("auto", "cuda", {"dtype": "bfloat16"}) == "bfloat16"
    assert pick_dtype("auto", "cuda", {"torch_dtype": "float16"}) == "float16"
    assert pick_dtype("auto", "cuda", {}) == "float32"
    assert pick_dtype("auto", "cpu", {"dtype": "bfloat16"}) == "float32"
    assert pick_dtype("bfloat16", "cpu", {}) == "bfloat16"
