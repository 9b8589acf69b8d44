"""A folder that brings this package's code runs nothing else, and of no folder files are read that lie elsewhere."""

import shutil

import pytest
from hostile.stage import edit_json

from replaceme.core.errors import ReplaceMeError
from replaceme.models.custom_code import AUTO_MAP, CODE, check_code
from replaceme.models.trust import check_inside, companions
from replaceme.verification.reload import question

OWN = "open('ran', 'w')\nclass Own: pass\n"
TOKENIZER = {"AutoTokenizer": ["tokenizer_own.Own", None]}


@pytest.fixture
def folder(tmp_path, make_llama, monkeypatch):
    """A checkpoint with code of ours, which is what `verify` looks for; the test runs beside it."""
    monkeypatch.chdir(tmp_path)
    place = shutil.copytree(make_llama(), tmp_path / "model")
    shutil.copy(CODE, place)
    edit_json(place / "config.json", model_type="replaceme_llama", auto_map=AUTO_MAP, replacements=[])
    check_code(place)
    return place


def of_the_tokenizer(folder):
    edit_json(folder / "tokenizer_config.json", auto_map=TOKENIZER)
    (folder / "tokenizer_own.py").write_text(OWN)


def of_the_tokenizer_elsewhere(folder):
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["somebody/else--own.Own", None]})


def named_in_the_config(folder):
    edit_json(folder / "config.json", auto_map=AUTO_MAP | TOKENIZER)
    (folder / "tokenizer_own.py").write_text(OWN)


def of_another_config(folder):
    edit_json(folder / "config.json", configuration_files=["config.4.0.0.json"])
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    edit_json(folder / "config.4.0.0.json", auto_map={"AutoConfig": "own.Own"})
    (folder / "own.py").write_text(OWN)


def found_by_its_place(folder):
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(OWN)


def in_a_linked_folder(folder):
    (folder.parent / "assets").mkdir()
    (folder.parent / "assets" / "generate.py").write_text(OWN)
    (folder / "custom_generate").symlink_to("../assets")


def linked_deep_inside(folder):
    (folder.parent / "somewhere").write_text(OWN)
    (folder / "assets").mkdir()
    (folder / "assets" / "words").symlink_to("../../somewhere")


def in_place_of_ours(folder):
    (folder / CODE.name).write_text(CODE.read_text() + OWN)


WAYS = {
    of_the_tokenizer: r"tokenizer_config\.json: wants to run its own code",
    of_the_tokenizer_elsewhere: r"tokenizer_config\.json: wants to run its own code",
    named_in_the_config: "`auto_map` names other code",
    of_another_config: "`configuration_files` names other files",
    found_by_its_place: r"custom_generate/generate\.py: could run",
    in_a_linked_folder: "custom_generate: a link to a folder",
    linked_deep_inside: "assets/words: a link out of the folder",
    in_place_of_ours: "not the file of this version",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_other_code_is_run(folder, tmp_path, way):
    way(folder)
    with pytest.raises(ReplaceMeError, match=WAYS[way]):
        question(folder, None, "cpu")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "answer.json").exists()


def test_what_could_run_is_not_copied(folder):
    for name in ("tokenizer_own.py", "vocab.pkl", "LICENSE.so"):
        (folder / name).write_text(OWN)
    assert {path.name for path in companions(folder)} == {
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def as_in_the_hubs_cache(folder, repository, shared):
    """Return a snapshot with the files of a folder, each a link to its blob; the one named `shared` to one in
    common.
    """
    snapshot, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = blobs / f"{number:040x}"
        if path.name == shared:
            common = repository.parent / "blobs" / "ab" / ("ab" * 32)
            common.parent.mkdir(parents=True)
            path.rename(common)
            blob.symlink_to(f"../../blobs/ab/{common.name}")
        else:
            path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def test_a_snapshot_in_the_hubs_cache_is_read(folder, tmp_path):
    names = {path.name for path in folder.iterdir()}
    snapshot = as_in_the_hubs_cache(folder, tmp_path / "hub" / "models--owner--name", "model.safetensors")
    check_code(snapshot)
    assert {path.name for path in snapshot.iterdir()} == names and companions(snapshot)
    check_inside(snapshot, snapshot / "model.safetensors")


@pytest.mark.parametrize(
    ("place", "to"),
    [
        ("snapshots/evil", "../../.ssh/key"),
        ("snapshots/evil", "../../blobs/key"),
        ("name/snapshots/evil", "../../blobs/key"),
        ("models--owner--name/snapshots/evil", "../../key"),
        ("models--owner--name/snapshots/evil", "../../blobs/more/key"),
        ("models--owner--name/snapshots/evil", "../other/key"),
        ("models--owner--name/snapshots/evil", "../../../blobs/ab/key"),
        ("models--owner--name/other/evil", "../../blobs/key"),
    ],
)
def test_only_the_hubs_blobs_are_more_than_the_folder(tmp_path, place, to):
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "LICENSE").symlink_to(to)
    (folder / to).resolve().parent.mkdir(parents=True, exist_ok=True)
    (folder / to).write_text("secret")
    with pytest.raises(ReplaceMeError, match="LICENSE: a link out of the folder"):
        companions(folder)


def test_blobs_that_are_links_themselves_are_followed_to_their_end(tmp_path):
    repository = tmp_path / "models--owner--name"
    (repository / "snapshots" / "evil").mkdir(parents=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "key").write_text("secret")
    (repository / "blobs").symlink_to("../keys")
    path = repository / "snapshots" / "evil" / "LICENSE"
    path.symlink_to("../../blobs/key")
    with pytest.raises(ReplaceMeError, match="a link out of the folder"):
        check_inside(path.parent, path)
