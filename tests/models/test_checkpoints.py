"""The content of a checkpoint is read from headers; a broken or foreign file is one clear line."""

import hashlib
import json
import shutil

import pytest

from replaceme.models.checkpoints import load_record, names_folder, open_checkpoint, resolve
from replaceme.models.loading import load_base_model, load_causal_model, load_tokenizer


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.fixture
def copy(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "copy")


@pytest.fixture
def shards(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "shards")


def test_record(sharded):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(sharded)
    record = resolve(str(sharded))
    assert record.folder == record.source == str(sharded) and record.revision is None
    assert (record.num_blocks, record.hidden_size, record.model_type) == (6, 16, "llama")
    assert record.architecture == "LlamaForCausalLM"
    assert record.parameters == model.num_parameters()
    assert record.block_parameters == [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    expected = {path.name for path in sharded.iterdir()}
    assert record.files.keys() == expected
    for name, digest in record.files.items():
        assert digest == hashlib.sha256((sharded / name).read_bytes()).hexdigest()


def test_tied_embeddings_count_once(gemma):
    from transformers import AutoModelForCausalLM

    assert resolve(str(gemma)).parameters == AutoModelForCausalLM.from_pretrained(gemma).num_parameters()


def test_identity_changes_with_any_file(copy):
    before = resolve(str(copy)).sha256
    assert resolve(str(copy)).sha256 == before
    edit_json(copy / "generation_config.json", temperature=0.1)
    assert resolve(str(copy)).sha256 != before


def test_a_record_is_read_back(llama, tmp_path, refuses):
    path = tmp_path / "model.json"
    resolve(str(llama)).save(path)
    assert load_record(path) == load_record(llama) == resolve(str(llama))
    path.write_text("{}")
    with refuses("not a model record", "replaceme model"):
        load_record(path)


@pytest.mark.parametrize(
    ("source", "local"),
    [
        ("/x", True),
        ("./x/y", True),
        ("../x", True),
        ("~/x", True),
        ("name", True),
        ("a/b/c", True),
        ("owner/name", False),
    ],
)
def test_folders_and_hub_ids(source, local):
    assert names_folder(source) == local


def test_missing_folder(tmp_path, refuses):
    with refuses(str(tmp_path / "nothing"), "no such folder"):
        resolve(str(tmp_path / "nothing"))


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def pickle_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut_short(folder, keep=0.5):
    path = next(folder.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


BROKEN = {
    "no config": (remove("config.json"), "no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "no `model_type`"),
    "no weights": (remove("model.safetensors"), "no model.safetensors and no model.safetensors.index.json"),
    "pickles only": (pickle_only, "pytorch_model.bin: pickles are not read"),
    "truncated": (cut_short, "truncated or corrupted"),
    "truncated header": (lambda f: cut_short(f, 0.01), "truncated or corrupted"),
    "empty file": (lambda f: cut_short(f, 0), "truncated or corrupted"),
    "unsupported": (config(model_type="t5"), "model_type 't5' is not supported"),
    "own code": (config(auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "quantised": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "config.json says gptq, 4 bits"),
    "no depth": (config(num_hidden_layers=...), "config.json says 32 blocks, the tensors named model.layers.* hold 6"),
    "depth is text": (config(num_hidden_layers="6"), "no usable `num_hidden_layers`"),
    "no width": (config(hidden_size=None), "no usable `hidden_size`"),
    "fewer blocks": (config(num_hidden_layers=5), "config.json says 5 blocks, the tensors named model.layers.* hold 6"),
    "more blocks": (config(num_hidden_layers=7), "config.json says 7 blocks"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints(copy, refuses, case):
    spoil, message = BROKEN[case]
    spoil(copy)
    with refuses(str(copy), message):
        resolve(str(copy))


def outside(folder):
    name = "model.safetensors.index.json"
    index = json.loads((folder / name).read_text())
    index["weight_map"]["lm_head.weight"] = "../other/model.safetensors"
    (folder / name).write_text(json.dumps(index))


SHARDS = {
    "missing shard": (remove("model-00002-of-00006.safetensors"), "model-00002-of-00006.safetensors: missing shard"),
    "truncated shard": (cut_short, "truncated or corrupted"),
    "outside": (outside, "lies outside the folder"),
    "no map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "no `weight_map`"),
    "a list": (lambda f: (f / "model.safetensors.index.json").write_text("[1]"), "no `weight_map`"),
    "numbers": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1}}'),
        "no `weight_map`",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_broken_shards(shards, refuses, case):
    spoil, message = SHARDS[case]
    spoil(shards)
    with refuses(str(shards), message):
        open_checkpoint(shards)


def test_a_single_file_counts_before_an_index_as_in_transformers(shards, llama):
    shutil.copy(llama / "model.safetensors", shards)
    assert open_checkpoint(shards).shards == ["model.safetensors"]


def without_tensor(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


UNLOADABLE = {
    "a tensor is missing": (without_tensor, "model.layers.3.mlp.up_proj.weight"),
    "another width": (config(intermediate_size=32), ""),
    "another hidden size": (config(hidden_size=32), ""),
}


@pytest.mark.parametrize("load", [load_base_model, load_causal_model])
@pytest.mark.parametrize("case", UNLOADABLE)
def test_weights_that_do_not_fill_the_model(copy, refuses, case, load):
    spoil, message = UNLOADABLE[case]
    spoil(copy)
    with refuses(str(copy), message.removeprefix("model.") if load is load_base_model else message):
        load(copy, "float32", "cpu")


def test_loading_leaves_the_logging_of_transformers_alone(llama):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = load_base_model(llama, "bfloat16", "cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_unknown_dtype(llama, refuses):
    with refuses("'float17' is not a torch type"):
        load_base_model(llama, "float17", "cpu")


def test_a_tokenizer_that_the_class_of_the_type_reads_otherwise(copy, caplog):
    load_tokenizer(copy)
    assert not caplog.messages
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "qwen2"}))
    load_tokenizer(copy)
    assert "transformers reads it as Qwen2Tokenizer" in caplog.text and "made for this type" in caplog.text


def test_no_tokenizer(copy, refuses):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with refuses(str(copy), "no usable tokenizer"):
        load_tokenizer(copy)


@pytest.mark.parametrize("error", [ConnectionError("no route to host\nmore"), OSError(), ValueError("gated")], ids=repr)
def test_hub_id_without_network(monkeypatch, refuses, error):
    def unreachable(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    reason = str(error).splitlines()[0] if str(error) else "OSError"
    with refuses("owner/name: neither a local folder nor reachable on the Hub", reason, "network"):
        resolve("owner/name")


def test_hub_snapshot(monkeypatch, llama, tmp_path, refuses):
    asked = []
    folder = shutil.copytree(llama, tmp_path / "snapshots" / "0123abc")

    def download(source, revision, allow_patterns):
        asked.append((source, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    record = resolve("owner/name", "main")
    (*first, beside), weights = asked
    assert first == ["owner/name", "main"] and weights == ("owner/name", "0123abc", ["model.safetensors"])
    assert not any(kind in p for p in beside for kind in (".bin", ".py", "*.safetensors"))
    assert record.revision == "0123abc" and record.folder == str(folder)
    for name, content in (
        ("model.safetensors", None),
        ("model.safetensors.index.json", '{"weight_map": {"a": "b-1.safetensors"}}'),
    ):
        (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with refuses("b-1.safetensors: missing shard"):
        resolve("owner/name", "main")
    assert asked[-1][2] == ["b-1.safetensors"], "what the index names, whatever it is called"


def test_a_local_folder_has_no_revision(llama, refuses):
    with refuses("a local folder has no revision"):
        resolve(str(llama), "main")


def test_a_misspelt_folder_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert names_folder("models/mine") and names_folder("./x") and names_folder("plain")
    assert not names_folder("owner/mine")
