"""A cut is written and read in one place, and says what it is in the same words everywhere."""

import json

import pytest
from given import cut_of

from replaceme.core.cut_record import Cut

SEVERAL = cut_of([[2, 4], [5, 6]], 8, parts=[(2, 3), (3, 4), (5, 6)], search="independent", adjacency="merge")


@pytest.mark.parametrize("cut", [cut_of([[1, 3]], 6), SEVERAL, cut_of([[1, 2]], 4, model_sha256="0" * 64)])
def test_what_is_saved_is_loaded(cut, tmp_path):
    cut.save(tmp_path / "cut.json")
    assert Cut.load(tmp_path / "cut.json") == cut


def test_what_is_not_known_is_not_written(tmp_path):
    cut_of([[1, 3]], 6).save(tmp_path / "cut.json")
    content = json.loads((tmp_path / "cut.json").read_text())
    assert list(content)[:-1] == ["groups", "blocks", "num_blocks", "metric", "position", "candidates"]
    assert content["position"] is None and content["groups"] == [[1, 3]]


def test_its_words_and_its_provenance():
    assert SEVERAL.span == "[2, 4), [5, 6)"
    assert SEVERAL.provenance.keys() == SEVERAL.content.keys() - {"candidates"}


@pytest.mark.parametrize("groups", [7, [["a", "b"]], [[1]], [[0, 2]], [[2, 9]]])
def test_groups_that_are_no_runs_of_blocks(groups, refuses):
    with refuses("made/cut.json: its `groups` are no runs", "choose the cut again"):
        Cut.of({**SEVERAL.content, "groups": groups}, "made/cut.json")


def test_another_file(refuses):
    with refuses("no 'metric' in it", "output of another step"):
        Cut.of({"groups": [[1, 2]], "blocks": 1, "num_blocks": 4})
