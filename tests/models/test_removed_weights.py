"""A checkpoint of ours without its weights is no damaged one: it is refused in one line that says how to make them."""

import shutil

import pytest

from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import RECORD, sha256_of_all, write_json
from replaceme.models.checkpoints import check_merged, open_checkpoint
from replaceme.models.removed_weights import are_removed, missing_weights, remove_weights, weights_of


@pytest.fixture(params=["llama", "sharded"])
def made(request, tmp_path):
    """A checkpoint with a record of its files."""
    folder = shutil.copytree(request.getfixturevalue(request.param), tmp_path / "model")
    write_json(folder / RECORD, {"files": sha256_of_all(folder, [path.name for path in folder.iterdir()])})
    return folder


def test_removed_weights(made):
    before = {path.name for path in made.iterdir()}
    assert not are_removed(made) and missing_weights(made) == []
    check_merged(made)
    names = set(weights_of(made))
    assert names and all(name.endswith(".safetensors") for name in names)
    remove_weights(made)
    assert {path.name for path in made.iterdir()} == before - names and are_removed(made)
    for read in (check_merged, open_checkpoint):
        with pytest.raises(ReplaceMeError, match=r"were removed after their last use .* --forcerun merge") as caught:
            read(made)
        assert not isinstance(caught.value, DamagedError) and "\n" not in str(caught.value)


def test_one_missing_shard_is_damage(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "model")
    write_json(folder / RECORD, {"files": sha256_of_all(folder, [path.name for path in folder.iterdir()])})
    (folder / next(iter(weights_of(folder)))).unlink()
    assert len(missing_weights(folder)) == 1 and not are_removed(folder)
    with pytest.raises(DamagedError, match="missing"):
        check_merged(folder)


def test_folders_of_others_have_none(llama, tmp_path):
    (tmp_path / RECORD).write_text("{")
    assert weights_of(llama) == weights_of(tmp_path) == {} and not are_removed(llama)
