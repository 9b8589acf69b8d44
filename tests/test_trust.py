"""A folder that brings this package's code runs nothing else, though plain transformers is told to trust it."""

import shutil

import pytest
from hostile.stage import edit_json

from replaceme.checkpoints import COMPANIONS
from replaceme.errors import ReplaceMeError
from replaceme.reload import reload
from replaceme.separate import AUTO_MAP, CODE, check_code
from replaceme.trust import companions

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


def in_place_of_ours(folder):
    (folder / CODE.name).write_text(CODE.read_text() + OWN)


WAYS = {
    of_the_tokenizer: r"tokenizer_config\.json: wants to run its own code",
    of_the_tokenizer_elsewhere: r"tokenizer_config\.json: wants to run its own code",
    named_in_the_config: "`auto_map` names other code",
    of_another_config: "`configuration_files` names other files",
    found_by_its_place: r"custom_generate/generate\.py: could run",
    in_place_of_ours: "not the file of this version",
}


@pytest.mark.parametrize("way", WAYS)
def test_no_other_code_is_run(folder, tmp_path, way):
    way(folder)
    with pytest.raises(ReplaceMeError, match=WAYS[way]):
        reload(folder, None, tmp_path)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "answer.json").exists()


def test_what_could_run_is_not_copied(folder):
    for name in ("tokenizer_own.py", "vocab.pkl", "LICENSE.so"):
        (folder / name).write_text(OWN)
    assert {path.name for path in companions(folder, COMPANIONS)} == {
        "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
