"""How many forward passes tables take: what can be gathered together is, what needs a result of another pass waits."""

import pytest

from replaceme.config.schema import parse
from replaceme.workflow.passes import passes, tables_asked_for

FITS = {
    "uidl": {"transform": "identity"},
    "ls": {},
    "cosine": {"objective": "cosine"},
    "recycled": {"placement": "down_proj", "recycle": 0.1},
    "recycled-cosine": {"placement": "down_proj", "recycle": 0.1, "objective": "cosine"},
    "removed": {"placement": "down_proj", "recycle": 0.1, "recycle_from": "removed"},
    "sequential": {"estimation": "sequential"},
    "svd": {"method": "svd_llm"},
    "kl": {"objective": "kl"},
    "sequential-kl": {"estimation": "sequential", "objective": "kl"},
    "magnitude": {"transform": "magnitude", "placement": "block"},
}


def config(fits, shards=2, cuts=("n2",)):
    table = {"models": ["m"], "calibrations": ["c"], "cuts": list(cuts), "fits": list(fits), "evaluation": "e"}
    return parse({
        "models": {"m": {"source": "resources/micro"}},
        "calibrations": {"c": {"dataset": "micro", "samples": 8, "shards": shards}},
        "cuts": {
            "n2": {"blocks": 2},
            "by-hand": {"blocks": 2, "start": 3},
            "two": {"blocks": 2, "groups": 2, "adjacency": "separate", "metric": "loss"},
        },
        "fits": FITS,
        "evaluations": {"e": {"tasks": {"piqa": {}}}},
        "tables": {"t": table},
        "targets": {"all_of_it": ["t"]},
    }, "config")  # fmt: skip


@pytest.mark.parametrize(("fits", "shards", "shared", "own"), [
    (["uidl"], 2, ["distances"], 0),
    (["ls", "uidl"], 2, ["distances", "sums"], 0),
    (["ls", "cosine"], 2, ["distances", "sums", "rows"], 0),
    (["ls", "cosine"], 1, ["distances", "sums and rows"], 0),
    (["recycled"], 2, ["distances", "sums", "sums with recycled neurons"], 0),
    (["recycled-cosine", "cosine"], 1, ["distances", "sums and rows", "sums and rows with recycled neurons"], 0),
    (["svd", "ls"], 2, ["distances", "sums"], 1),
    (["kl", "uidl"], 2, ["distances", "sums"], 1),
    (["magnitude"], 2, ["distances", "sums"], 1),
])  # fmt: skip
def test_passes_of_a_text(fits, shards, shared, own):
    [found] = passes(config(fits, shards), ["t"])
    assert (list(found.shared), found.own, len(found.candidates)) == (shared, own, 1)


def test_a_fit_on_the_model_shortened_so_far_has_passes_of_its_own():
    [found] = passes(config(["sequential"], cuts=["two"]), ["t"])
    assert found.own == 1 and found.shared == ("distances",)
    assert str(found).startswith("m on c: 1 forward pass over the text (distances), and passes for 1 fit alone")


def test_a_fit_sums_for_the_cut_of_one_group_where_another_cut_has_several():
    for cuts in (["by-hand", "two"], ["two", "by-hand"]):
        [found] = passes(config(["sequential"], cuts=cuts), ["t"])
        assert found.shared == ("distances", "sums") and found.own == 1


def test_a_training_on_the_model_shortened_so_far_is_one_fit():
    [found] = passes(config(["sequential-kl"], cuts=["by-hand", "two"]), ["t"])
    assert found.shared == ("distances", "sums") and found.own == 2


def test_neurons_of_removed_blocks_take_two_passes_for_each_cut():
    [found] = passes(config(["removed"], cuts=["n2", "by-hand"]), ["t"])
    assert found.shared == ("distances", "sums", "sums with recycled neurons") and found.scored == 2
    assert "and two for each of 2 choices of neurons of removed blocks" in str(found)


def test_a_cut_by_hand_has_no_candidates():
    [found] = passes(config(["ls"], cuts=["by-hand"]), ["t"])
    assert found.candidates == () and str(found) == "m on c: 2 forward passes over the text (distances; sums)"


def test_a_text_that_is_enough_has_a_pass_before_the_others():
    whole = config(["ls"], cuts=["by-hand"]).model_dump(exclude_unset=True)
    whole["calibrations"]["c"] = {"dataset": "micro", "samples": "auto", "most": 500}
    [found] = passes(parse(whole), ["t"])
    assert str(found).endswith("(distances; sums); before them one over at most 500 samples, as far as is enough")


def test_tables_behind_targets(refuses):
    whole = config(["ls"])
    assert all(tables_asked_for(whole, targets) == ["t"] for targets in ([], ["t"], ["all_of_it"]))
    with refuses("'all_of_them' is no table, figure or target; there are t, all_of_it"):
        tables_asked_for(whole, ["all_of_them"])
