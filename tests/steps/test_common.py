"""What steps that measure a model take it from."""

import shutil

import pytest

from replaceme.cli import main
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import replacing, write_text
from replaceme.models import checkpoints
from replaceme.models.checkpoints import resolve
from replaceme.steps import rows
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


@pytest.mark.parametrize("out", ["own", "own/", "."])
def test_a_folder_is_never_replaced_by_a_file(llama, tmp_path, monkeypatch, capsys, out):
    """It may be the user's model; a step that took hours says so before it begins."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own/thesis.txt").write_text("important")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["speed", str(llama), "--out", out])
    assert f"{out} is a folder; give the path of a file" in capsys.readouterr().err
    with pytest.raises(ReplaceMeError, match="own: is a folder, and a file is to be written"):
        write_text(tmp_path / "own", "other")
    assert (tmp_path / "own/thesis.txt").read_text() == "important"


@pytest.mark.parametrize("step", ["prune", "merge", "heal", "fit", "rows", "dequantise", "publish"])
def test_a_file_is_never_taken_for_a_folder(tmp_path, capsys, step):
    """As `replacing` would find after all work."""
    (tmp_path / "notes.txt").write_text("important")
    with pytest.raises(SystemExit):
        main([step, "--out", str(tmp_path / "notes.txt")])
    assert "notes.txt is a file; give the path of a folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "important"


@pytest.mark.parametrize("out", [".", "..", "../inside"])
def test_the_working_folder_is_never_replaced(llama, tmp_path, monkeypatch, capsys, out):
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    text = ["--dataset", "micro", "--samples", "2", "--tokens", "8", "--blocks", "2", "--start", "2"]
    assert main(["prune", str(llama), *text, "--device", "cpu", "--out", out]) == 1
    assert "would be replaced" in capsys.readouterr().err
    with pytest.raises(ReplaceMeError, match="holds the working folder and would be replaced"), replacing(out):
        pytest.fail("begun")
    assert [path.name for path in tmp_path.iterdir()] == ["inside"] and not list((tmp_path / "inside").iterdir())


def test_rows_do_not_replace_what_else_is_in_a_folder(tmp_path, refuses):
    (tmp_path / "thesis.txt").write_text("important")
    with refuses(f"{tmp_path}: holds thesis.txt and would be replaced"):
        rows._check_folder(tmp_path)
    (tmp_path / "thesis.txt").rename(tmp_path / ".snakemake_timestamp")
    (tmp_path / "0").mkdir()
    rows._check_folder(tmp_path)
