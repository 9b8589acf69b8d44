"""A GGUF file becomes the folder that transformers' own loader of such files would save."""

import numpy
import pytest
import torch

from replaceme.models.loading import load_causal_model, load_tokenizer
from replaceme.models.packed_source import open_packed
from replaceme.surgery.plain_copy import dequantise

SIZES = {"embedding_length": 64, "feed_forward_length": 96, "block_count": 4, "context_length": 128}
SHAPES = {
    "attn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
    "ffn_norm": (64,), "ffn_gate": (96, 64), "ffn_up": (96, 64), "ffn_down": (64, 96),
}  # fmt: skip


def write(path, kind, without=()):
    """Write a tiny random Llama with matrices of a type of GGML, whose layout of queries and keys is llama.cpp's."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in SIZES.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    from tokenizers.pre_tokenizers import ByteLevel

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*sorted(ByteLevel.alphabet()), "<s>", "</s>", "ab", "cd"])
    writer.add_token_types([1] * 256 + [3, 3, 1, 1])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    random = numpy.random.default_rng(0)
    named = {"token_embd": (260, 64), "output_norm": (64,), "output": (260, 64)}
    named |= {f"blk.{block}.{name}": shape for block in range(4) for name, shape in SHAPES.items()}
    for name, shape in named.items():
        values = random.normal(size=shape).astype(numpy.float32)
        if name in without:
            continue
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_folder_is_what_transformers_loads(tmp_path):
    gguf = pytest.importorskip("gguf")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.Q8_0)
    dequantise(str(path), None, tmp_path / "plain")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    model = load_causal_model(tmp_path / "plain", "bfloat16", "cpu")
    ours, found = model.state_dict(), theirs.state_dict()
    assert ours.keys() == found.keys() and all(torch.equal(ours[name], found[name]) for name in ours)
    assert model.config.dtype == torch.bfloat16 and model.config.num_key_value_heads == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert load_tokenizer(tmp_path / "plain")("abcd e").input_ids == tokenizer("abcd e").input_ids


def test_a_file_of_floats_keeps_their_type(tmp_path):
    gguf = pytest.importorskip("gguf")
    view = open_packed(write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F16))
    assert view.dtype == view.config["dtype"] == "float16"


def test_files_that_are_refused(tmp_path, refuses):
    gguf = pytest.importorskip("gguf")
    (tmp_path / "text.gguf").write_text("text")
    with refuses("text.gguf", "does not begin as a GGUF file"):
        dequantise(str(tmp_path / "text.gguf"), None, tmp_path / "plain")
    (tmp_path / "cut.gguf").write_bytes(write(tmp_path / "tiny.gguf", gguf.GGMLQuantizationType.F16).read_bytes()[:999])
    with refuses("cut.gguf", "transformers does not read it"):
        dequantise(str(tmp_path / "cut.gguf"), None, tmp_path / "plain")
    write(tmp_path / "part.gguf", gguf.GGMLQuantizationType.F16, without=["blk.3." + name for name in SHAPES])
    with refuses("part.gguf", "config.json says 4 blocks"):
        dequantise(str(tmp_path / "part.gguf"), None, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch, refuses):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with refuses("a.gguf", "pip install 'replaceme[gguf]'"):
        dequantise(str(tmp_path / "a.gguf"), None, tmp_path / "plain")
