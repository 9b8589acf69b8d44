"""What killed jobs left behind goes, what others are writing stays."""

import os
import platform
import subprocess

from replaceme.core.files import TEMPORARY, temporary_beside
from replaceme.core.sweep import sweep_temporaries


def test_sweep_removes_what_killed_jobs_left(tmp_path, monkeypatch):
    """Not what living processes write, nor what is new on another machine, whose processes cannot be seen from here."""
    old = tmp_path
    (old / "file").write_text("old")
    (old / "folder").mkdir()
    (old / "folder/inner").write_text("old")
    dead = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    own = temporary_beside(old / "file")
    own.write_text("being written by an orphan of a killed Snakemake")
    own.with_name(own.name.replace(f".{os.getpid()}.", f".{dead}.")).write_text("half")
    monkeypatch.setattr(platform, "node", lambda: "another")
    theirs, stale = temporary_beside(old / "model"), temporary_beside(old / "model")
    for folder in (theirs, stale):
        folder.mkdir()
        (folder / "inner").write_text("of another machine")
    os.utime(stale / "inner", (0, 0))
    os.utime(stale, (0, 0))
    monkeypatch.undo()
    nested = old / "folder" / f"{TEMPORARY}model-2"
    (nested / f"{TEMPORARY}inner").mkdir(parents=True)
    removed = sweep_temporaries(old)
    assert {path.name for path in removed} >= {stale.name, f"{TEMPORARY}model-2"} and len(removed) == 4
    left = {str(path.relative_to(old)) for path in old.rglob("*")}
    assert left == {own.name, theirs.name, f"{theirs.name}/inner", "file", "folder", "folder/inner"}
    assert sweep_temporaries(old) == []
