"""Searches of single blocks, wherever they lie: against every subset, and against influences measured by hand."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.choose import choose
from replaceme.cuts.distances import measure

RECORD = SimpleNamespace(num_blocks=8, parameters=1000, block_parameters=[100] * 8)


def listed(values, metric="residual"):
    return [{"start": k, "end": k + 1, metric: value} for k, value in enumerate(values, 1)]


@given(st.lists(st.integers(0, 9), min_size=7, max_size=7), st.integers(1, 3), st.integers(0, 2), st.data())
def test_independent_takes_the_least_of_all_subsets(values, first, last, data):
    possible = range(first, 8 - last)
    blocks = data.draw(st.integers(1, len(possible)))
    cut = CutConfig(blocks=blocks, search="independent", metric="residual", keep_first=first, keep_last=last)
    chosen = choose(cut, RECORD, candidates=listed(values))
    gone = [start for start, _ in chosen.parts]
    best = min(sum(values[k - 1] for k in some) for some in combinations(possible, blocks))
    assert sum(values[k - 1] for k in gone) == best
    assert set(gone) <= set(possible) and len(set(gone)) == blocks == chosen.blocks
    assert [k for start, end in chosen.groups for k in range(start, end)] == gone
    assert all(one[1] < two[0] for one, two in zip(chosen.groups, chosen.groups[1:], strict=False))


def test_blocks_that_touch_become_one_group():
    chosen = choose(
        CutConfig(blocks=4, search="independent", metric="residual"),
        RECORD,
        candidates=listed([0.9, 0.1, 0.2, 0.8, 0.3, 0.7, 0.0]),
    )
    assert chosen.groups == [(2, 4), (5, 6), (7, 8)]
    assert chosen.parts == [(2, 3), (3, 4), (5, 6), (7, 8)]
    assert chosen.search == "independent"


def test_ties_go_to_the_lower_start():
    chosen = choose(CutConfig(blocks=2, search="independent", metric="residual"), RECORD, candidates=listed([0.5] * 7))
    assert chosen.groups == [(1, 3)]


@pytest.mark.parametrize("blocks", [1, 3])
def test_shortgpt_is_the_least_influences_of_blocks(llama, make_tokens, blocks_of, brute_rows, blocks):
    """Influence: 1 - cos of what a block gets and puts out, averaged over tokens (arXiv 2403.03853)."""
    tokens = make_tokens()
    hidden, _, _ = brute_rows(llama, tokens)
    influences = {
        k: sum(1 - float(x @ y / x.norm() / y.norm()) for x, y in zip(hidden[k - 1], hidden[k], strict=True))
        / hidden.shape[1]
        for k in range(1, 6)
    }
    record = SimpleNamespace(num_blocks=6)
    cut = CutConfig(blocks=blocks, search="independent", metric="bi")
    chosen = choose(cut, record, measure(*blocks_of(llama, "float64"), tokens, 5))
    assert [start for start, _ in chosen.parts] == sorted(sorted(influences, key=influences.get)[:blocks])
    assert {one["start"]: one["bi"] for one in chosen.candidates} == pytest.approx(influences)


def test_blocks_that_stay_leave_too_few(refuses):
    cut = CutConfig(blocks=3, search="independent", metric="bi", keep_first=4, keep_last=2)
    with refuses("cannot remove 3 of 8 blocks", "the first 4 and the last 2 stay; remove at most 2"):
        choose(cut, RECORD, {"bi_all": torch.ones(8, 8, dtype=torch.float64)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 2}, "drop groups"),
        ({"adjacency": "separate"}, "drop adjacency"),
        ({"start": 2}, "drop search"),
        ({"search": "greedy", "keep_first": 4}, "keep_first is about single blocks"),
        ({"search": "greedy", "keep_last": 1}, "keep_last is about single blocks"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(**{"blocks": 4, "search": "independent", **options})


def test_a_sequential_estimation_needs_no_common_sums_where_there_may_be_several_groups():
    cut = CutConfig(blocks=4, search="independent")
    assert cut.several and FitConfig(estimation="sequential").sequential(cut.several)
    assert not CutConfig(blocks=4).several
