"""A model that is shortened twice says which blocks of the original are gone, by their numbers there."""

import json

import pytest

import replaceme
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.core.cut_record import Cut
from replaceme.models.checkpoints import resolve
from replaceme.surgery.lineage import lineage_of
from replaceme.surgery.model_card import healed_card


def shorten(source, out, texts, start, blocks=1):
    cut, fit = CutConfig(blocks=blocks, start=start), FitConfig(transform="identity")
    return replaceme.prune(source, texts=texts, cut=cut, fit=fit, out=out, verify=False)


@pytest.fixture(scope="module")
def twice(llama, texts, tmp_path_factory):
    """Of 6 blocks 2 and 3, then 1 and 2 of those that are left, which were 1 and 4."""
    folder = tmp_path_factory.mktemp("lineage")
    shorten(llama, folder / "once", texts, 2, 2)
    return folder, shorten(folder / "once", folder / "twice", texts, 1, 2)


def test_record_and_card_name_the_original_and_all_blocks(twice, llama, texts, tmp_path):
    folder, _ = twice
    made, card = json.loads((folder / "twice/replaceme.json").read_text()), (folder / "twice/README.md").read_text()
    assert "lineage" not in json.loads((folder / "once/replaceme.json").read_text())
    assert made["lineage"]["groups"] == [[1, 5]] and made["lineage"]["num_blocks"] == 6
    assert made["lineage"]["original"]["files"] == resolve(str(llama)).files
    assert made["source"]["source"] == "once" and made["cut"]["groups"] == [[1, 3]]
    assert f"# {llama.name}, 4 blocks shorter" in card
    assert f"once was made from {llama.name} (local folder) in the same way: of its blocks 0 .. 5, [1, 5) are" in card


def test_a_third_time_and_a_healing_know_it_too(twice):
    folder, made = twice
    cut = Cut([(1, 2)], 1, 2, "given")
    assert lineage_of(resolve(str(folder / "twice")), cut, {})["groups"] == [[1, 6]]
    narrower = lineage_of(resolve(str(folder / "twice")), cut, {"method": "slicegpt"})
    assert narrower["groups"] == [[1, 5]], "of which all blocks are there"
    healing = {"train": "full", "steps": 1, "objective": "text"}
    healed = {**made, "original": made["source"], "healing": healing, "origin": {"text": {"dataset": "t"}}}
    assert "4 blocks shorter and healed" in healed_card(healed, {})


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"cut": {"groups": [], "blocks": 0, "num_blocks": 9, "metric": ""}}']
)
def test_what_is_no_record_of_the_source_counts_for_nothing(llama, tmp_path, content):
    for path in llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    record = resolve(str(llama))
    (tmp_path / "replaceme.json").write_text(content)
    moved = type(record)(**{**vars(record), "folder": str(tmp_path)})
    assert lineage_of(moved, Cut([(1, 2)], 1, 6, "given"), {}) is None
