"""Temporary folders of a run are out of the way at once, and gone when it ends."""

import asyncio
from threading import Event

import pytest
import snakemake.io
from snakemake.io import AnnotatedString, IOFile, directory, temp

from replaceme.core.files import TEMPORARY
from replaceme.workflow import removal
from replaceme.workflow.removal import Removal


@pytest.fixture
def begun(monkeypatch):
    monkeypatch.setattr(snakemake.io, "remove", snakemake.io.remove)  # put back afterwards
    made = Removal()
    made.begin()
    return made


def removed(path, *flags):
    """Have Snakemake remove an output as it does when nothing needs it any more."""
    text = AnnotatedString(str(path))
    for flag in flags:
        text = flag(text)
    asyncio.run(IOFile(text).remove(remove_non_empty_dir=True))


def test_a_folder_is_renamed_at_once_and_removed_by_a_thread(begun, tmp_path, monkeypatch):
    go, remove = Event(), removal.remove
    monkeypatch.setattr(removal, "remove", lambda path: go.wait(60) and remove(path))
    for name in ("rows", "other"):
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / "0/part").write_text("x")
        removed(tmp_path / name, directory, temp)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 2 and all(name.startswith(TEMPORARY) for name in left)
    go.set()
    begun.end()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_removed_is_named(begun, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(removal, "remove", lambda path: None)
    (tmp_path / "rows").mkdir()
    removed(tmp_path / "rows", directory, temp)
    begun.end()
    [left] = tmp_path.iterdir()
    assert f"{left}: cannot be removed" in caplog.text


def test_files_links_and_what_is_not_there_go_as_before(begun, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("file", "link", "none"):
        removed(tmp_path / name, temp)
    begun.end()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
