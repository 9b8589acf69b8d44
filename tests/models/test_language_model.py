"""A checkpoint is a language model, an encoder of text or refused, by its config, tensors and files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.families import FAMILIES
from replaceme.models.language_model import check_head, check_purpose
from replaceme.models.model_config import family_of, is_encoder
from replaceme.planning import hub
from replaceme.planning.outline import estimated_outline

SIZES = {"num_hidden_layers": 6, "hidden_size": 16, "vocab_size": 66, "max_position_embeddings": 32}


@pytest.mark.parametrize("name", ["Qwen2ForRewardModel", "GPT2DoubleHeadsModel", "Gemma3ForConditionalGeneration"])
def test_classes_that_are_neither_language_models_nor_encoders(name, refuses):
    with refuses("m: config.json says `architectures`", name, "give the language model"):
        estimated_outline("m", {"model_type": "llama", **SIZES, "architectures": [name]})


@pytest.mark.parametrize("names", [None, [], ["LlamaForCausalLM"], ["GPT2LMHeadModel"], ["ReplaceMeForCausalLM"]])
def test_language_models(names):
    config = {"model_type": "llama", "architectures": names, "use_bidirectional_attention": None, "is_causal": True}
    check_purpose(config, "m")
    assert not is_encoder(config)


@pytest.mark.parametrize("key", ["is_encoder_decoder", "add_cross_attention"])
def test_entries_that_make_another_model_of_one(key, refuses):
    with refuses(f"m: config.json says `{key}`", "no language model", "give the language model"):
        family_of({"model_type": "gemma3_text", **SIZES, key: True}, "m")
    family_of({"model_type": "vit", "num_hidden_layers": 6, "hidden_size": 16, key: True}, "m")


def test_heads(refuses):
    llama, neox = FAMILIES["llama"], FAMILIES["gpt_neox"]
    body = ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]
    check_head(llama, False, [*body, "lm_head.weight"], "m")
    check_head(llama, True, body, "m")
    check_head(neox, False, ["embed_out.weight"], "m")
    for other in ("score.weight", "classifier.bias", "qa_outputs.weight", "multiple_choice_head.summary.weight"):
        with refuses(f"m: tensor {other}", "classifier or a reward model"):
            check_head(llama, True, [*body, other], "m")
    with refuses("m: no tensor lm_head.weight", "incomplete, or no language model", "download it again, or give"):
        check_head(llama, False, body, "m")


def test_checkpoints_are_judged_when_they_are_opened(llama, gemma, tmp_path, refuses):
    def copied(source, name):
        return shutil.copytree(source, tmp_path / name)

    def written(folder, tensors):
        save_file(tensors, folder / "model.safetensors")
        return folder

    bare = copied(llama, "bare")
    tensors = load_file(bare / "model.safetensors")
    del tensors["lm_head.weight"]
    with refuses("no tensor lm_head.weight"):
        open_checkpoint(written(bare, {name.removeprefix("model."): one for name, one in tensors.items()}))
    with refuses("tensor score.weight"):
        open_checkpoint(written(bare, tensors | {"score.weight": torch.zeros(1, 16)}))
    pooled = copied(gemma, "pooled")
    config = json.loads((pooled / "config.json").read_text())
    (pooled / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if key not in ("architectures", "tie_word_embeddings")})
    )
    assert open_checkpoint(pooled).family.predicts
    (pooled / "1_Pooling").mkdir()
    assert not open_checkpoint(pooled).family.predicts


def test_files_of_the_hub_are_looked_at(llama, monkeypatch):
    files = {"model.safetensors": 4, "config.json": 1}
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(llama / "config.json"))
    monkeypatch.setattr(hub, "repository", lambda kind, name, _: hub.Repository(kind, name, None, files, None))
    outline = hub.model_outline("owner/name", "main")
    assert outline.num_blocks == 6 and not is_encoder(outline.config)
    files["1_Pooling/config.json"] = 1
    assert is_encoder(hub.model_outline("owner/name", "main").config)
