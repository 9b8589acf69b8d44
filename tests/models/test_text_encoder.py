"""Encoders of text: recognised, shortened with a fold that is exact, and saved as folders of the same kind."""

import json
import shutil

import pytest
import torch
from given import cut_of
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel

from replaceme import prune
from replaceme.config.evaluations import SpeedConfig
from replaceme.evaluation.speed import speed
from replaceme.models.checkpoints import open_checkpoint
from replaceme.models.family import Family
from replaceme.models.model_config import longest_sequence
from replaceme.models.probed import PROPOSED
from replaceme.models.text_encoder import auto_class, check_modules, is_text_encoder
from replaceme.surgery.fold import merge
from replaceme.transforms.transform import Transform

SIZES = {"vocab_size": 66, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 2}
BESIDE = {
    "modules.json": [{"path": "", "type": "sentence_transformers.models.Transformer"},
                     {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}],
    "1_Pooling/config.json": {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True},
    "sentence_bert_config.json": {"max_seq_length": 32},
}  # fmt: skip


@pytest.fixture(scope="module")
def bert(llama, tmp_path_factory):
    """A BERT of sentence-transformers with the names of tensors that BERT's authors chose."""
    folder = tmp_path_factory.mktemp("bert") / "bert"
    torch.manual_seed(0)
    config = BertConfig(**SIZES, max_position_embeddings=40, initializer_range=0.3, pad_token_id=0)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, one in load_file(folder / "model.safetensors").items():
        end = ".".join(name.split(".")[-2:])
        one = one if one.dim() > 1 else torch.rand_like(one) + 0.5
        tensors[f"bert.{name.removesuffix(end)}{old.get(end, end)}"] = one
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llama / name, folder)
    for name, content in BESIDE.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"model_type": "bert"}, "AutoModel"),
        ({"model_type": "bert", "is_decoder": True}, None),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, None),
        ({"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]}, "AutoModelForMaskedLM"),
        ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "AutoModel"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "replaceme_embeds": True}, "AutoModel"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "AutoModel"),
        ({"model_type": "gemma4_text", "use_bidirectional_attention": "vision"}, None),
        ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
         "AutoModelForSequenceClassification"),
        ({"model_type": "bart", "is_encoder_decoder": True}, None),
        ({"model_type": "gemma3", "text_config": {}, "architectures": ["Gemma3Model"]}, None),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, None),
    ],
)  # fmt: skip
def test_what_is_an_encoder_of_text_and_by_which_class_it_is_loaded(config, named):
    assert is_text_encoder(config) is (named is not None)
    assert named is None or auto_class(config) == named


def test_positions_that_begin_behind_the_padding_token_leave_shorter_sequences(monkeypatch):
    monkeypatch.setitem(PROPOSED, "roberta", Family(padded_positions=True, predicts=False))
    sizes = {"model_type": "roberta", "num_hidden_layers": 6, "hidden_size": 16, "max_position_embeddings": 514}
    assert longest_sequence(sizes, "m") == 512 and longest_sequence(sizes | {"pad_token_id": 0}, "m") == 513


def test_an_encoder_is_shortened_and_what_lies_beside_it_kept(bert, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{number * number % 59}" for number in range(2000)))
    made = prune(bert, texts=text, out=tmp_path / "out", blocks=2)  # verified too
    summary = made["summary"]
    assert summary["loader"] == "AutoModel" and 0 < summary["predictions"]["cosine"] < 1
    for name, content in BESIDE.items():
        assert json.loads((tmp_path / "out" / name).read_text()) == content
    kept = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kept == json.loads((bert / "config.json").read_text()) | {"num_hidden_layers": 4}
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_hidden_layers == 4


def test_speed_is_that_of_a_prompt_as_long_as_the_encoder_takes(bert):
    """Nothing is decoded, so no room is left for it, and there is no cache."""
    found = speed(bert, SpeedConfig(prompt_tokens=40, new_tokens=8, repeats=1, warmup=0))
    assert (found["prompt_tokens"], found["new_tokens"], found["cache_bytes_per_token"]) == (40, 0, None)
    assert found["latency_s"]["median"] > 0 and found["decode_tokens_per_s"]["median"] is None


def test_the_norm_of_the_last_removed_block_takes_the_place_of_the_carriers(bert, tmp_path):
    """Y + M T goes into it, and the folder puts out what the original does with T and that norm by hand."""
    matrix = torch.eye(16, dtype=torch.float64) + 0.3 * torch.randn(16, 16, dtype=torch.float64)
    given = Transform(matrix, {"solver": "least_squares", "residual": 0.5})
    merge(bert, cut_of([(2, 4)], 6), [given], tmp_path / "out", {})
    whole, short = (AutoModel.from_pretrained(one, add_pooling_layer=False).eval() for one in (bert, tmp_path / "out"))
    blocks = whole.encoder.layer
    with torch.no_grad():
        dense = blocks[1].output.dense
        dense.weight.copy_(matrix.T.float() @ dense.weight)
        dense.bias.copy_(dense.bias @ matrix.float())
    blocks[1].output.LayerNorm = blocks[3].output.LayerNorm
    del blocks[2:4]
    ids, mask = torch.arange(40).reshape(2, 20), torch.ones(2, 20, dtype=torch.int64)
    mask[1, 12:] = 0
    found, expected = (one(ids, attention_mask=mask).last_hidden_state[mask.bool()] for one in (short, whole))
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_modules_that_need_code_or_pickles_are_refused(bert, tmp_path, refuses):
    folder = shutil.copytree(bert, tmp_path / "st")
    modules = BESIDE["modules.json"]
    for more, said in (
        ({"path": "2_Dense", "type": "sentence_transformers.models.Dense"}, "2_Dense/model.safetensors: missing"),
        ({"path": "", "type": "custom_st.Transformer"}, "module 'custom_st.Transformer' is code"),
    ):
        (folder / "modules.json").write_text(json.dumps([*modules, more]))
        with refuses(said):
            open_checkpoint(folder)
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, folder / "2_Dense" / "model.safetensors")
    (folder / "modules.json").write_text(
        json.dumps([*modules, {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}])
    )
    check_modules(folder)
    assert "2_Dense/model.safetensors" in open_checkpoint(folder).companions()
