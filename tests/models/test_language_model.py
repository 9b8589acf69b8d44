"""Embedding models, classifiers and reward models are refused before any work, by their config, tensors or files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.families import FAMILIES
from replaceme.models.language_model import check_beside, check_head, check_purpose
from replaceme.models.model_config import family_of
from replaceme.planning import hub
from replaceme.planning.outline import estimated_outline

SIZES = {"num_hidden_layers": 6, "hidden_size": 16, "vocab_size": 66, "max_position_embeddings": 32}


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForSequenceClassification", "Qwen2ForRewardModel", "MistralModel", "LlamaForTokenClassification",
        "GPT2DoubleHeadsModel", "Qwen3ForSequenceClassification", "Gemma3ForConditionalGeneration",
    ],
)  # fmt: skip
def test_classes_that_are_no_language_models(name, refuses):
    with refuses("m: config.json says `architectures`", name, "give the language model"):
        estimated_outline("m", {"model_type": "llama", **SIZES, "architectures": [name]})


@pytest.mark.parametrize("names", [None, [], ["LlamaForCausalLM"], ["GPT2LMHeadModel"], ["ReplaceMeForCausalLM"]])
def test_language_models(names):
    check_purpose({"architectures": names, "use_bidirectional_attention": None, "is_causal": True}, "m")


@pytest.mark.parametrize(
    "entry",
    [
        {"use_bidirectional_attention": True}, {"use_bidirectional_attention": "all"}, {"is_causal": False},
        {"is_encoder_decoder": True}, {"add_cross_attention": True},
    ],
)  # fmt: skip
def test_entries_that_make_another_model_of_one(entry, refuses):
    with refuses("m: config.json says", *entry, "no language model", "give the language model"):
        family_of({"model_type": "gemma3_text", **SIZES, **entry}, "m")
    family_of({"model_type": "vit", "num_hidden_layers": 6, "hidden_size": 16, **entry}, "m")


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


def test_files_of_sentence_transformers(refuses):
    check_beside(["config.json", "README.md", "modules.py"], "m")
    for name in ("modules.json", "1_Pooling", "1_Pooling/config.json"):
        with refuses(f"m: {name} beside it", "embedding model"):
            check_beside(["config.json", name], "m")


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
    open_checkpoint(pooled)
    (pooled / "1_Pooling").mkdir()
    with refuses("1_Pooling beside it"):
        open_checkpoint(pooled)


def test_files_of_the_hub_are_looked_at(llama, monkeypatch, refuses):
    files = {"model.safetensors": 4, "config.json": 1}
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(llama / "config.json"))
    monkeypatch.setattr(hub, "repository", lambda kind, name, _: hub.Repository(kind, name, None, files, None))
    assert hub.model_outline("owner/name", "main").num_blocks == 6
    files["1_Pooling/config.json"] = 1
    with refuses("owner/name: 1_Pooling/config.json beside it"):
        hub.model_outline("owner/name", "main")
