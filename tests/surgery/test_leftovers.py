"""A new checkpoint keeps certain files of its source's folder, and reports the rest."""

import json
import shutil
from types import SimpleNamespace

import pytest
from given import cut_of
from transformers import LlamaForCausalLM

from replaceme.core.errors import DamagedError
from replaceme.models.checkpoints import check_merged, open_checkpoint, resolve
from replaceme.models.loading import load_tokenizer, size
from replaceme.models.weights import INDEX
from replaceme.planning import hub
from replaceme.surgery.fold import merge
from replaceme.surgery.leftovers import left_out, left_out_of_models
from replaceme.transforms.closed_form import fit_identity
from replaceme.verification import reload_worker as plain
from replaceme.verification.verify import _check_template

TEMPLATE = "additional_chat_templates/tool_use.jinja"


@pytest.fixture
def source(llama, tmp_path):
    """A Llama with a second chat template, a tokenizer of another kind, and files that are nobody's business."""
    folder = shutil.copytree(llama, tmp_path / "source")
    for name in (TEMPLATE, "tekken.json", "params.json", "onnx/model.onnx", "consolidated.safetensors", ".cache/x"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{name} {{{{ messages }}}}")
    return folder


def merged(source, out):
    merge(source, cut_of([[2, 4]], 6), [fit_identity(hidden_size=16)], out, {}, "a card\n")
    return out


def test_files_in_folders_are_copied_recorded_and_replaced(source, tmp_path, refuses):
    out = merged(source, tmp_path / "out")
    assert merged(source, out) == out, "a result is replaced, folders and all"
    assert (out / TEMPLATE).read_bytes() == (source / TEMPLATE).read_bytes() and (out / "tekken.json").is_file()
    assert check_merged(out)["files"].keys() > {TEMPLATE, "tekken.json"}
    assert resolve(str(source)).files.keys() > {TEMPLATE, "tekken.json"}
    assert load_tokenizer(out).chat_template.keys() == {"default", "tool_use"}
    for own in ("consolidated.safetensors", "additional_chat_templates/own.txt"):
        (out / own).write_text("years of work")
        with refuses(f"is not empty (it holds {own})"):
            merged(source, out)
        (out / own).unlink()
    (out / TEMPLATE).write_text("other")
    with pytest.raises(DamagedError, match="tool_use"):
        check_merged(out)


@pytest.mark.parametrize("name", ["../key", "/etc/hostname", f"{TEMPLATE}/../../key"])
def test_a_record_names_files_of_its_folder_alone(source, tmp_path, name):
    out = merged(source, tmp_path / "out")
    (out / "replaceme.json").write_text(json.dumps({"files": {name: "0" * 64}}))
    with pytest.raises(DamagedError, match="lists files outside of this folder"):
        check_merged(out)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_template_is_no_link_out_of_the_folder(source, tmp_path, refuses, what):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "tool_use.jinja").write_text("secret")
    place = (source / TEMPLATE) if what == "file" else (source / TEMPLATE).parent
    (source / TEMPLATE).unlink()
    if what == "folder":
        place.rmdir()
    place.symlink_to(tmp_path / "keys" / ("tool_use.jinja" if what == "file" else ""))
    with refuses("tool_use.jinja: a link out of the folder"):
        resolve(str(source))


def test_a_lost_template_fails_the_check_of_the_tokenizer(source, tmp_path, refuses):
    out, work = merged(source, tmp_path / "out"), tmp_path / "work"
    work.mkdir()
    where = {"pretrained_model_name_or_path": str(out)}
    plain._save_template(where, work)
    _check_template(work / "chat_template.json", source)
    shutil.rmtree((out / TEMPLATE).parent)
    plain._save_template(where, work)
    with refuses("chat templates are not those of the original (one, not ['default', 'tool_use'])"):
        _check_template(work / "chat_template.json", source)


def test_what_is_left_behind_is_said_in_the_log_on_the_card_and_before(source, llama, tmp_path, caplog):
    line = "files that are neither weights nor of the tokenizer (consolidated.safetensors, onnx/, params.json)"
    assert left_out(open_checkpoint(source)) == [line] and left_out(open_checkpoint(llama)) == []
    out = merged(source, tmp_path / "out")
    assert f"{source}: left out of the new checkpoint: {line}" in caplog.text
    assert (out / "README.md").read_text() == f"a card\n\nLeft out of the source were {line}\n"
    tables = {"t": SimpleNamespace(named=lambda section: ["m", "hub"])}
    models = {"m": SimpleNamespace(source=str(source)), "hub": SimpleNamespace(source="owner/name")}
    config = SimpleNamespace(models=models, tables=tables)
    assert left_out_of_models(config) == [f"models.m: left out of what is made from it: {line}"]
    assert left_out(open_checkpoint(out)) == [], "what is made here is known"


@pytest.mark.parametrize(
    "beside", ["consolidated.safetensors", "model-of-another.safetensors", "model.fp16.safetensors"]
)
def test_the_size_is_that_of_the_weights_that_are_loaded(sharded, llama, tmp_path, beside):
    folder, model = shutil.copytree(sharded, tmp_path / "source"), LlamaForCausalLM.from_pretrained(llama)
    (folder / beside).write_bytes(b"x" * 10**6)
    shards = sum(path.stat().st_size for path in sharded.glob("*.safetensors"))
    assert size(model, folder)["file_bytes"] == shards
    shutil.copy(llama / "model.safetensors", folder)  # before the index
    assert size(model, folder)["file_bytes"] == (llama / "model.safetensors").stat().st_size


def test_weights_on_the_hub_are_those_that_the_index_names(sharded, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file, revision: str(sharded / file))
    named = sorted(path.name for path in sharded.glob("*.safetensors"))
    files = dict.fromkeys([*named, INDEX, "model.fp16.safetensors", "consolidated.safetensors"], 1)
    assert hub._weights(hub.Repository("model", "owner/name", None, files, None)) == named
    both = hub.Repository("model", "owner/name", None, files | {"model.safetensors": 1}, None)
    assert hub._weights(both) == ["model.safetensors"]
