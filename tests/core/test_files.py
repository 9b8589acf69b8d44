"""A write either happens or leaves no trace; a full disk is one line."""

import errno
import json
import os
import random
import stat
import subprocess
from pathlib import Path

import pytest

from replaceme.core import files
from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import (
    RESULTS_VARIABLE,
    TEMPORARY,
    load_tensors,
    read_json,
    replacing,
    save_tensors,
    sha256,
    write_json,
    write_safetensors,
    write_text,
)
from replaceme.workflow.set_aside import told


def test_weights_are_checked_in_the_background_and_all_else_at_once(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    digests = files.sha256_of_all(tmp_path, ["config.json", "model.safetensors"])
    check = files.LaterChecks()
    check(tmp_path, digests)
    check.wait()
    (tmp_path / "model.safetensors").write_text("flipped")
    check(tmp_path, digests)
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        check.wait()
    (tmp_path / "config.json").write_text("flipped")
    with pytest.raises(DamagedError, match=r"config\.json"):
        files.LaterChecks()(tmp_path, digests)


class Stop(Exception):
    pass


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def old(tmp_path):
    """A folder with an old file and an old folder."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_text("old")
    return tmp_path


def test_files_and_folders_are_replaced_whole(old):
    with replacing(old / "file") as temporary:
        temporary.write_text("new")
        assert (old / "file").read_text() == "old", "readers see the old file until the end"
    with replacing(old / "folder") as temporary:
        temporary.mkdir()
        (temporary / "other").write_text("new")
        assert (old / "folder" / "inner").read_text() == "old"
    assert (old / "file").read_text() == (old / "folder" / "other").read_text() == "new"
    assert listing(old) == ["file", "folder", "folder/other"]


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["file", "folder", "new"])
def test_an_exception_leaves_the_old_and_no_temporaries(old, name, error):
    before = listing(old)
    with pytest.raises(error), replacing(old / name) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("half")
        raise error
    assert listing(old) == before and (old / "file").read_text() == "old"


def test_an_old_folder_goes_as_a_whole(old, monkeypatch):
    """A kill while the old folder is removed leaves nothing of it behind, and a rename that fails leaves all of it."""
    removed = []
    monkeypatch.setattr(files, "remove", removed.append)
    with replacing(old / "folder") as temporary:
        temporary.mkdir()
    assert not list((old / "folder").iterdir()) and removed[0].name.startswith(f"{TEMPORARY}folder-")
    assert (removed[0] / "inner").read_text() == "old"
    rename = Path.replace

    def failing(path, target):
        if target == old / "folder" and path == temporary:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    removed[0].replace(old / "again")
    with pytest.raises(ReplaceMeError, match="cannot write"), replacing(old / "folder") as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
        (old / "folder/kept").touch()
        monkeypatch.setattr(Path, "replace", failing)
    assert [path.name for path in (old / "folder").iterdir()] == ["kept"]


def test_parents_are_made_and_everything_is_synced(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink()) or sync(fd))
    with replacing(tmp_path / "a" / "b") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
    assert [path.name.split("-")[0] for path in synced] == ["x", ".tmp", "a"]
    assert listing(tmp_path) == ["a", "a/b", "a/b/x"]
    synced.clear()
    with replacing(tmp_path / "a" / "c", synced=False) as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("x")
    assert [path.name for path in synced] == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(old, refuses):
    """/dev/full fails as a full disk does, and the link that leads to it lies where the temporary file would."""
    before = listing(old)
    for name in ("file", "new"):
        with refuses(str(old / name), "No space left on device", "free some space"), replacing(old / name) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")
    assert listing(old) == before and (old / "file").read_text() == "old"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_failing_writes_of_every_kind(old, refuses, monkeypatch, code):
    import torch

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    before = listing(old)
    for write in (
        lambda: write_text(old / "file", "new"),
        lambda: write_json(old / "new.json", {}),
        lambda: save_tensors(old / "new.safetensors", {"x": torch.ones(2)}, {}),
    ):
        with refuses(os.strerror(code), "cannot write"):
            write()
    assert listing(old) == before and (old / "file").read_text() == "old"


def test_safetensors_on_a_full_disk(old, refuses):
    """A real limit on the size of files, in a child process: safetensors reports it with a type of its own."""
    import sys

    code = f"""# warm
import resource, signal, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import save_tensors
try:
    save_tensors({str(old / "file")!r}, {{"x": torch.zeros(10_000)}}, {{}})
except ReplaceMeError as error:
    print(error)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "cannot write" in shown.stdout and "too large" in shown.stdout, shown.stdout + shown.stderr
    assert listing(old) == ["file", "folder", "folder/inner"] and (old / "file").read_text() == "old"


def test_places_where_nothing_can_be_written(old, refuses):
    for path in (old / "file" / "below", old / "file" / "far" / "below", old / ("x" * 300)):
        with refuses("cannot write"):
            write_text(path, "new")
    with refuses("cannot write"), replacing(old / "file") as temporary:
        temporary.mkdir()
    assert listing(old) == ["file", "folder", "folder/inner"] and (old / "file").read_text() == "old"


def test_other_errors_of_the_system_pass(old):
    with pytest.raises(FileNotFoundError), replacing(old / "file"):
        Path(old / "nothing").read_text()


# ---- content


def test_json_is_read_back(tmp_path, refuses):
    value = {"b": 0.1 + 0.2, "a": [None, True, "é"]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["b", "a", "content_sha256"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"x": float("nan")})
    assert read_json(tmp_path / "x.json") == value
    with refuses("no such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nonsense"], ids=repr)
def test_broken_json(tmp_path, refuses, content):
    (tmp_path / "x.json").write_bytes(content)
    with refuses(str(tmp_path / "x.json"), "not valid JSON"):
        read_json(tmp_path / "x.json")


def test_tensors_are_read_back_and_written_alike(tmp_path):
    import torch

    tensors = {"b": torch.arange(12).view(3, 4).T, "a": torch.tensor(1.5, dtype=torch.float64), "e": torch.ones(0, 3)}
    metadata = {"z": 1, "a": {"x": [1.5, None]}}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, tensors, metadata)
    loaded, stamp = load_tensors(tmp_path / "one")
    assert stamp == metadata and loaded.keys() == tensors.keys()
    assert all(
        torch.equal(loaded[name], tensors[name]) and loaded[name].dtype == tensors[name].dtype for name in tensors
    )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o644


def test_broken_tensor_files(tmp_path, refuses):
    import torch

    path = tmp_path / "x.safetensors"
    with refuses("no such file"):
        load_tensors(path)
    save_tensors(path, {"x": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-1])
    with refuses("corrupted safetensors file"):
        load_tensors(path)
    write_safetensors(path, {"x": torch.ones(2)}, {"format": "pt"})
    with refuses("not written by replaceme"):
        load_tensors(path)


def flipped(content, chance):
    """Yield every byte with one of its bits flipped, in turn."""
    for place in range(len(content)):
        yield place, content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def test_a_flipped_bit_is_noticed(tmp_path):
    """Wherever it is, in JSON and in tensors: the file is refused, or it says the same."""
    import torch

    tensors = {"a": torch.arange(3, dtype=torch.float64), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    tensors |= {"c": torch.tensor(7), "d": torch.tensor([True, False])}
    value = {"metric": 0.25, "name": "é", "list": [1, None, "x"], "nested": {"k": 3}}
    save_tensors(tmp_path / "x", tensors, value)
    write_json(tmp_path / "y", value)
    chance, refused = random.Random(0), 0
    for name, read in (("x", load_tensors), ("y", lambda path: ({}, read_json(path)))):
        content = (tmp_path / name).read_bytes()
        for place, damaged in flipped(content, chance):
            (tmp_path / name).write_bytes(damaged)
            try:
                found, metadata = read(tmp_path / name)
            except DamagedError as error:
                assert len(str(error).splitlines()) == 1 and str(tmp_path / name) in str(error)
                refused += 1
            except ReplaceMeError as error:
                assert name == "x" and "not written by replaceme" in str(error), (place, str(error))
            else:
                assert metadata == value and all(torch.equal(found[key], tensors[key]) for key in found), place
    assert refused > 900


def test_what_others_wrote_has_no_digest(tmp_path):
    (tmp_path / "x.json").write_text('{"tokens_sha256": "' + 64 * "0" + '"}')
    assert read_json(tmp_path / "x.json") == {"tokens_sha256": 64 * "0"}


def test_damage_is_put_aside_in_a_workflow_alone(tmp_path, monkeypatch):
    """Only below its results; a folder as a whole; and so that it can happen again."""
    inside, outside, folder = tmp_path / "results/x.json", tmp_path / "x.json", tmp_path / "results/model"
    folder.mkdir(parents=True)
    for again in range(2):
        for path in (inside, outside, folder / "part"):
            folder.mkdir(exist_ok=True)
            path.write_text(f"damaged {again}")
        errors = [DamagedError(inside, "damaged"), DamagedError(folder, "damaged", folder / "part")]
        monkeypatch.delenv(RESULTS_VARIABLE, raising=False)
        assert [told(error) for error in errors] == [
            f"{inside}: damaged; delete it and run again",
            f"{folder / 'part'}: damaged; delete {folder} and run again",
        ]
        monkeypatch.setenv(RESULTS_VARIABLE, str(tmp_path / "results"))
        assert told(errors[0]) == f"{inside}: damaged; it is {inside}.damaged now: run again, and it is made anew"
        assert "run again, and it is made anew" in told(errors[0]), "another job has seen it too"
        assert f"it is {folder}.damaged now" in told(errors[1])
        assert told(DamagedError(outside, "damaged")) == f"{outside}: damaged; delete it and run again"
        assert told(ReplaceMeError("other")) == "other"
        assert listing(tmp_path) == ["results", "results/model.damaged", "results/model.damaged/part",
                                     "results/x.json.damaged", "x.json"]  # fmt: skip
        assert (tmp_path / "results/x.json.damaged").read_text() == f"damaged {again}"


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
