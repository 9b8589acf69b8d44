"""Tensors that are stored and not loaded are neither counted nor written; tied weights are found where they are."""

import json
import shutil

import pytest
import torch
from given import cut_of
from safetensors.torch import load_file, save_file

from replaceme.activations.open_model import load_model
from replaceme.models.checkpoints import open_checkpoint, resolve
from replaceme.models.loading import Held, load_base_model, load_causal_model
from replaceme.models.model_config import family_of
from replaceme.surgery.fold import merge
from replaceme.surgery.leftovers import left_out
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_identity
from replaceme.transforms.transform import Transform

CUT = cut_of([[2, 4]], 6)
FURTHER = [f"model.layers.6.{name}.weight" for name in ("eh_proj", "enorm", "shared_head.head", "mlp.down_proj")]
ODD = [
    "mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight", "model.mtp_layers.0.input_layernorm.weight",
    "v_head.summary.bias", "value_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.1.attn.bias", "model.layers.1.attention.masked_bias", "model.rotary_emb.inv_freq",
    "model.layers.2.self_attn.k_scale", "model.layers.0.adapter.weight", "extra.weight",
]  # fmt: skip


def rewritten(source, out, edit, **config):
    """Return a copy of a checkpoint of one file with other tensors."""
    folder = shutil.copytree(source, out)
    tensors = edit(load_file(folder / "model.safetensors"))
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


@pytest.fixture
def storing(llama, tmp_path):
    """A function that adds tensors to a Llama."""

    def add(names, **config):
        more = {name: torch.ones(3) for name in names}
        return rewritten(llama, tmp_path / "storing", lambda tensors: tensors | more, **config)

    return add


def test_what_is_not_loaded_is_not_counted(storing, llama, caplog):
    folder, plain = storing([*FURTHER, *ODD]), resolve(str(llama))
    assert open_checkpoint(folder).unloaded.keys() == {*FURTHER, *ODD}
    record = resolve(str(folder))
    for key in ("parameters", "block_parameters", "num_blocks"):
        assert getattr(record, key) == getattr(plain, key)
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert open_checkpoint(folder).file_bytes == header + 4 * plain.parameters
    load_base_model(folder, "float32", "cpu"), load_causal_model(folder, "float32", "cpu")
    assert not caplog.records, "said where something is made of it"


def test_what_is_not_loaded_is_not_written_and_said(storing, llama, tmp_path, caplog):
    folder = storing([*FURTHER, *ODD], num_nextn_predict_layers=1, mtp_num_hidden_layers=2, mtp_loss_weight=0.1)
    for source, out in ((folder, "out"), (llama, "plain")):
        merge(source, CUT, [fit_identity(hidden_size=16)], tmp_path / out, {}, "a card\n")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "plain/model.safetensors").read_bytes()
    config, plain = (json.loads((tmp_path / out / "config.json").read_text()) for out in ("out", "plain"))
    predicting = {"num_nextn_predict_layers": 0, "mtp_num_hidden_layers": 0, "mtp_loss_weight": 0.1}
    assert config == plain | predicting
    [line] = left_out(open_checkpoint(folder))
    assert line.startswith("16 tensors that transformers does not load (") and line.endswith(", 13 more)")
    assert (tmp_path / "out/README.md").read_text() == f"a card\n\nLeft out of the source were {line}\n"
    assert (tmp_path / "plain/README.md").read_text() == "a card\n"
    assert [record.message for record in caplog.records] == [f"{folder}: left out of the new checkpoint: {line}"]


def test_a_shard_with_nothing_else_is_recorded_and_not_copied(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "source")
    save_file({"mtp.norm.weight": torch.ones(3)}, folder / "mtp.safetensors", {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(
        json.dumps(content | {"weight_map": content["weight_map"] | {"mtp.norm.weight": "mtp.safetensors"}})
    )
    assert "mtp.safetensors" in resolve(str(folder)).files
    merge(folder, CUT, [fit_identity(hidden_size=16)], tmp_path / "out", {})
    merge(sharded, CUT, [fit_identity(hidden_size=16)], tmp_path / "plain", {})
    written, plain = (
        {path.name: path.read_bytes() for path in (tmp_path / out).glob("model*")} for out in ("out", "plain")
    )
    assert written == plain


def test_a_further_block_is_one_that_predicts_or_is_declared(storing, refuses, tmp_path):
    ordinary = ["model.layers.6.mlp.up_proj.weight"]
    with refuses("config.json says 6 blocks, the tensors named model.layers.* hold 7"):
        open_checkpoint(storing(ordinary))
    shutil.rmtree(tmp_path / "storing")
    assert list(open_checkpoint(storing(ordinary, num_nextn_predict_layers=1)).unloaded) == ordinary


def test_a_stored_tensor_of_ordinary_name_that_the_class_lacks_is_told(storing, caplog):
    load_base_model(storing(["model.layers.0.self_attn.q_norm.weight"]), "float32", "cpu")
    assert (
        "1 tensors that transformers does not load, the first is model.layers.0.self_attn.q_norm.weight" in caplog.text
    )


@pytest.fixture(scope="module")
def tied(make_llama):
    return make_llama(tie_word_embeddings=True)


def as_the_head(tensors):
    return {name.replace("model.embed_tokens", "lm_head"): one for name, one in tensors.items()}


def as_the_base(tensors):
    return {name.removeprefix("model."): one for name, one in tensors.items()}


def twice(tensors):
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


@pytest.mark.parametrize("edit", [as_the_head, as_the_base, twice])
@pytest.mark.parametrize("placement", ["mlp", "upstream", "block"])
def test_tied_weights_are_found_wherever_transformers_finds_them(tied, tmp_path, edit, placement):
    folder, ids = rewritten(tied, tmp_path / "source", edit), torch.arange(6, 20)[None]
    expected = load_base_model(tied, "float32", "cpu")(ids).last_hidden_state
    for streaming in ("never", "always") if placement == "mlp" else ():
        model = load_model(folder, "float32", "cpu", False, Held(streaming=streaming))
        assert type(model).__name__ == "LlamaModel"
        assert torch.equal(model.embed_tokens.weight, load_base_model(tied, "float32", "cpu").embed_tokens.weight)
        if streaming == "never":
            assert torch.equal(model(ids).last_hidden_state, expected)
    matrix = 1.5 * torch.eye(16, dtype=torch.float64)
    given = [Transform(matrix, {"solver": "by hand"}, placement)]
    merge(folder, CUT, given, tmp_path / "out", {})
    model = load_causal_model(tied, "float32", "cpu")
    with shortened(model.base_model, family_of(open_checkpoint(tied).config, ""), [(2, 4)], given):
        logits = model(ids).logits
    found = load_causal_model(tmp_path / "out", "float32", "cpu")(ids).logits
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_without_embedding_and_head_it_is_incomplete(tied, tmp_path, refuses):
    def without(tensors):
        return {name: one for name, one in tensors.items() if "embed" not in name}

    with refuses("incomplete checkpoint, 2 tensors missing"):
        load_base_model(rewritten(tied, tmp_path / "source", without), "float32", "cpu")
