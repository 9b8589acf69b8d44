"""What steps that measure a model take it from."""

import shutil

import pytest

from replaceme.models import checkpoints
from replaceme.models.checkpoints import resolve
from replaceme.steps.common import weights_folder


def test_a_folder_is_opened_and_not_hashed(llama, monkeypatch):
    """The hashes of 140 GB would take minutes, and nothing is compared with them."""
    monkeypatch.setattr(checkpoints, "sha256_of_all", lambda *_: pytest.fail("hashed"))
    folder, config = weights_folder(str(llama))
    assert folder == llama and config["model_type"] == "llama"


def test_a_record_is_compared_with_its_files(llama, tmp_path, refuses):
    folder, record = tmp_path / "model", tmp_path / "model.json"
    shutil.copytree(llama, folder)
    resolve(str(folder)).save(record)
    assert weights_folder(str(record))[0] == folder
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    with refuses(f"in {record}; copy the model again, or delete {record} to take it as it is"):
        weights_folder(str(record))


def test_a_folder_that_is_no_model_is_refused(tmp_path, refuses):
    with refuses("config.json"):
        weights_folder(str(tmp_path))
