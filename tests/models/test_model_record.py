"""The record of a model is written and read in one place."""

import json
from dataclasses import replace

from replaceme.models.model_record import ModelRecord

RECORD = ModelRecord("owner/name", "0123", "/a", "LlamaForCausalLM", "llama", 2, 4, 100, [30, 30], {"b": "1", "a": "2"})


def test_what_is_saved_is_loaded(tmp_path):
    RECORD.save(tmp_path / "model.json")
    assert ModelRecord.load(tmp_path / "model.json") == RECORD
    content = json.loads((tmp_path / "model.json").read_text())
    assert list(content)[:5] == ["source", "revision", "folder", "architecture", "model_type"]


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    RECORD.save(tmp_path / "model.json")
    content = json.loads((tmp_path / "model.json").read_text())
    content = {key: value for key, value in content.items() if key not in ("model_type", "content_sha256")}
    (tmp_path / "model.json").write_text(json.dumps(content))
    assert ModelRecord.load(tmp_path / "model.json").files == RECORD.files


def test_the_hash_is_of_names_and_contents_in_any_order():
    other = replace(RECORD, files={"a": "2", "b": "1"})
    assert other.sha256 == RECORD.sha256 and set(RECORD.provenance) > {"source", "files"}
