"""Searches for several groups against enumeration of every split, and against their own definitions."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from replaceme.config.cuts import CutConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.choose import choose
from replaceme.cuts.groups import check_room, dynamic, greedy, merged, sizes_needed

ADJACENCY = st.sampled_from(["merge", "separate"])


def all_spans(num_blocks, halves=False):
    whole = [(start, end) for start in range(1, num_blocks) for end in range(start + 1, num_blocks + 1)]
    return sorted([*whole, *((start - 0.5, end - 0.5) for start, end in whole)]) if halves else whole


def allowed(runs, adjacency):
    gap = int(adjacency == "separate")
    return all(one[1] + gap <= two[0] for one, two in pairwise(runs))


def every_split(costs, blocks, groups, adjacency):
    for count in range(1, groups + 1):
        for runs in combinations(sorted(costs), count):
            if sum(end - start for start, end in runs) == blocks and allowed(runs, adjacency):
                yield runs


@st.composite
def problems(draw, halves=False):
    num_blocks = draw(st.integers(3, 5 if halves else 8))
    spans = all_spans(num_blocks, halves)
    values = draw(st.lists(st.integers(0, 9), min_size=len(spans), max_size=len(spans)))
    costs = {span: value / 8 for span, value in zip(spans, values, strict=True)}
    return num_blocks, costs, draw(st.integers(1, num_blocks - 1)), draw(st.integers(1, 3)), draw(ADJACENCY)


@settings(max_examples=200, deadline=None)
@given(problems() | problems(halves=True))
def test_dynamic_is_the_best_of_every_split(problem):
    num_blocks, costs, blocks, groups, adjacency = problem
    found = dynamic(costs, num_blocks, blocks, groups, adjacency)
    assert 1 <= len(found) <= groups and found == sorted(found) and allowed(found, adjacency)
    assert set(found) <= set(costs)
    assert sum(end - start for start, end in found) == blocks
    best = min(sum(costs[run] for run in runs) for runs in every_split(costs, blocks, groups, adjacency))
    assert sum(costs[run] for run in found) == best


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(1, 3))
def test_greedy_takes_the_cheapest_run_that_leaves_room_and_dynamic_is_no_worse(problem, size):
    num_blocks, costs, _, groups, adjacency = problem
    try:
        check_room(num_blocks, size * groups, groups, "greedy", adjacency)
    except ReplaceMeError:
        placed = [c for c in combinations(all_spans(num_blocks), groups) if {e - s for s, e in c} == {size}]
        assert not any(allowed(runs, adjacency) for runs in placed)
        return
    assume(size * groups < num_blocks)
    same = {span: cost for span, cost in costs.items() if span[1] - span[0] == size}
    found = greedy(same, num_blocks, groups, adjacency)
    complete = [set(runs) for runs in combinations(same, groups) if allowed(sorted(runs), adjacency)]
    chosen = set()
    for _ in range(groups):
        fits = [span for span in same if span not in chosen and any(chosen | {span} <= whole for whole in complete)]
        chosen.add(min(fits, key=lambda one: (same[one], one)))
    assert found == sorted(chosen)
    best = dynamic(costs, num_blocks, size * groups, groups, adjacency)
    assert sum(costs[run] for run in best) <= sum(costs[run] for run in found)


@given(problems())
def test_merging_keeps_the_blocks_and_leaves_one_between_groups(problem):
    num_blocks, costs, blocks, groups, adjacency = problem
    parts = dynamic(costs, num_blocks, blocks, groups, adjacency)
    found = merged(parts)
    assert allowed(found, "separate")
    assert [k for start, end in found for k in range(start, end)] == [k for s, e in parts for k in range(s, e)]
    assert adjacency == "merge" or found == parts


def test_greedy_passes_over_a_run_that_leaves_no_room():
    assert greedy({(1, 3): 0.5, (2, 4): 0.1, (3, 5): 0.6}, 5, 2, "merge") == [(1, 3), (3, 5)]


def test_what_a_search_compares(refuses):
    assert sizes_needed(6, 1, "greedy") == [6]
    assert sizes_needed(6, 3, "greedy") == [2]
    assert sizes_needed(4, 2, "dynamic") == [1, 2, 3, 4]
    with refuses("5 blocks do not split into 2 groups", "search: dynamic"):
        sizes_needed(5, 2, "greedy")
    with refuses("2 groups of 2 of 5 blocks leave no block between them"):
        check_room(5, 4, 2, "greedy", "separate")
    check_room(5, 4, 2, "greedy", "merge")


RECORD = SimpleNamespace(num_blocks=8, parameters=1000, block_parameters=[100] * 8)


def matrix(costs):
    """Return distances whose entry (start - 1, end - 1) is the cost of a run, 1 where none is given."""
    found = torch.ones(8, 8, dtype=torch.float64)
    for (start, end), cost in costs.items():
        found[start - 1, end - 1] = cost
    return {"cosine_all": found}


@pytest.mark.parametrize(
    ("options", "groups", "parts"),
    [
        ({}, [(2, 6)], [(2, 4), (4, 6)]),
        ({"adjacency": "separate"}, [(2, 4), (6, 8)], [(2, 4), (6, 8)]),
        ({"search": "dynamic", "adjacency": "separate"}, [(1, 4), (7, 8)], [(1, 4), (7, 8)]),
    ],
)
def test_a_cut_of_two_groups(options, groups, parts):
    distances = matrix({(2, 4): 0.1, (4, 6): 0.2, (6, 8): 0.3, (1, 4): 0.1, (7, 8): 0.05})
    chosen = choose(CutConfig(blocks=4, groups=2, metric="cosine", **options), RECORD, distances)
    assert (chosen.groups, chosen.parts, chosen.blocks) == (groups, parts, 4)
    sizes = {one["end"] - one["start"] for one in chosen.candidates}
    assert sizes == ({1, 2, 3, 4} if "search" in options else {2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 5, "groups": 2}, "search greedy needs blocks that 2 divides"),
        ({"blocks": 2, "groups": 3, "search": "dynamic"}, "2 blocks cannot be 3 groups"),
        ({"blocks": 4, "groups": 2, "start": 1}, "drop groups"),
        ({"blocks": 4, "adjacency": "separate"}, "adjacency is about several groups"),
        ({"blocks": 4, "search": "dynamic"}, "search is about several groups"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(**options)
