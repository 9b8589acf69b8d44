"""Candidates against brute force, ties, ratios, and every way in which a cut cannot be made."""

from types import SimpleNamespace

import pytest
import torch

from replaceme.config.cuts import CutConfig
from replaceme.core.cut_record import Cut
from replaceme.cuts.choose import choose, resolve_blocks, spans
from replaceme.cuts.distances import measure
from replaceme.models.part_costs import PartCosts

RECORD = SimpleNamespace(num_blocks=6, parameters=1000, block_parameters=[100] * 6)


def listed(values, blocks=2, metric="residual"):
    return [{"start": k, "end": k + blocks, metric: value} for k, value in enumerate(values, 1)]


@pytest.mark.parametrize("metric", ["cosine", "angular"])
@pytest.mark.parametrize("position", ["all", "last"])
def test_the_papers_choice_is_the_least_entry_of_its_matrix(llama, make_tokens, blocks_of, metric, position):
    matrices = measure(*blocks_of(llama), make_tokens(), 5)
    chosen = choose(CutConfig(blocks=2, metric=metric, position=position), RECORD, matrices)
    values = {s: float(matrices[f"{metric}_{position}"][s - 1, s + 1]) for s in range(1, 5)}
    best = min(values, key=values.get)
    assert chosen.groups == [(best, best + 2)]
    assert {one["start"]: one[metric] for one in chosen.candidates} == values
    assert (chosen.metric, chosen.position) == (metric, position)


@pytest.mark.parametrize("metric", ["residual", "cosine_after_fit"])
def test_the_post_fit_choice_is_the_least_of_its_metric(metric):
    other = {"residual": "cosine_after_fit", "cosine_after_fit": "residual"}[metric]
    candidates = [{**one, other: -one["start"]} for one in listed([0.5, 0.2, 0.3, 0.4], metric=metric)]
    chosen = choose(CutConfig(blocks=2, metric=metric), RECORD, candidates=candidates)
    assert chosen.content == {
        "groups": [[2, 4]], "blocks": 2, "num_blocks": 6, "metric": metric, "position": "all",
        "candidates": candidates,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "start"),
    [([0.2] * 4, 1), ([0.3, 0.2, 0.2, 0.3], 2), ([0.3, 0.2, 0.4, 0.2], 2), ([0.4, 0.3, 0.2, 0.2], 3)],
)
def test_ties_go_to_the_lower_start(values, start):
    candidates = listed(values)
    assert choose(CutConfig(blocks=2, metric="residual"), RECORD, candidates=candidates).groups[0][0] == start
    matrix = torch.ones(6, 6, dtype=torch.float64)
    for one in candidates:
        matrix[one["start"] - 1, one["end"] - 1] = one["residual"]
    assert choose(CutConfig(blocks=2, metric="cosine"), RECORD, {"cosine_all": matrix}).groups[0][0] == start


def test_a_cut_by_hand_needs_no_evidence():
    chosen = choose(CutConfig(blocks=2, start=4), RECORD)
    assert chosen.groups == [(4, 6)]
    assert (chosen.metric, chosen.position, chosen.candidates) == ("given", None, [])


@pytest.mark.parametrize(("start", "blocks"), [(5, 2), (4, 3), (100, 1)])
def test_a_cut_by_hand_must_fit(refuses, start, blocks):
    with refuses(f"start {start} with {blocks} blocks", f"between 1 and {6 - blocks}"):
        choose(CutConfig(blocks=blocks, start=start), RECORD)


def test_spans_leave_a_carrier():
    assert spans(4, 1) == [(1, 2), (2, 3), (3, 4)]
    assert spans(4, 3) == [(1, 4)]


@pytest.mark.parametrize("blocks", [0, 4, 5, -1])
def test_a_cut_without_carrier_is_refused(refuses, blocks):
    with refuses(f"cannot remove {blocks} of 4 blocks", "remove at most 3"):
        spans(4, blocks)


@pytest.mark.parametrize(
    ("ratio", "blocks"), [(0.001, 1), (0.1, 1), (0.149, 1), (0.151, 2), (0.2, 2), (0.25, 2), (0.3, 3), (0.54, 5)]
)
def test_ratio_is_of_all_parameters(ratio, blocks):
    """A block is a tenth of this model; 0.25 lies half way, and Python rounds it to the even number."""
    assert resolve_blocks(CutConfig(ratio=ratio), RECORD) == blocks


def test_ratio_of_a_model(llama):
    from replaceme.models.checkpoints import resolve

    record = resolve(str(llama))
    share = record.block_parameters[0] / record.parameters
    assert 0.08 < share < 0.17
    assert [resolve_blocks(CutConfig(ratio=n * share), record) for n in range(1, 6)] == [1, 2, 3, 4, 5]


def test_a_ratio_out_of_reach_says_how_far_one_can_go(refuses):
    with refuses("ratio 0.7 is out of reach", "all blocks but one are 0.500 of the model"):
        resolve_blocks(CutConfig(ratio=0.7), RECORD)


def test_a_ratio_of_another_unit_is_of_its_costs(refuses):
    """Every other block has all of the cache; a sixth of the time is the head's."""
    cache = PartCosts("cache", 60.0, [20.0, 0.0] * 3, measured={"prompt_tokens": 8})
    time = PartCosts("decode", 0.6, [0.05, 0.15] * 2 + [0.1] * 2)
    of_cache, of_time = (SimpleNamespace(**vars(RECORD), costs=costs) for costs in (cache, time))
    assert resolve_blocks(CutConfig(ratio=0.5, of="cache"), of_cache) == 3
    assert resolve_blocks(CutConfig(ratio=0.5, of="decode"), of_time) == 3
    assert resolve_blocks(CutConfig(ratio=0.5), of_time) == 5, "a block is a tenth of the parameters"
    chosen = choose(CutConfig(ratio=0.34, of="cache", metric="residual"), of_cache, candidates=listed([1, 0, 1, 1]))
    assert chosen.groups == [(2, 4)]
    assert chosen.budget == {"of": "cache", "ratio": 0.34, "saved": 20 / 60, "measured": {"prompt_tokens": 8}}
    assert Cut.of(chosen.content) == chosen
    with refuses("ratio 0.95 is out of reach", "all blocks but one are 0.833 of the model"):
        resolve_blocks(CutConfig(ratio=0.95, of="cache"), of_cache)
    with refuses("cut: a share of decode needs", "--costs, made by `replaceme parts MODEL --of decode`"):
        resolve_blocks(CutConfig(ratio=0.5, of="decode"), of_cache)
    with refuses("cost no cache"):
        nothing = PartCosts("cache", 1.0, [0.0] * 6)
        resolve_blocks(CutConfig(ratio=0.5, of="cache"), SimpleNamespace(**vars(RECORD), costs=nothing))


def test_halves_cost_what_they_are():
    costs = PartCosts("cache", 24.0, [4.0] * 6, attentions=[3.0] * 6, mlps=[1.0] * 6)
    assert [costs.of_run(run) for run in ((1, 2), (1, 1.5), (1.5, 2), (1.5, 3.5))] == [4.0, 3.0, 1.0, 8.0]
    assert PartCosts("cache", 24.0, [4.0] * 6).share([(1, 2), (2.5, 3.5)]) is None


def test_candidates_of_another_size_are_refused(refuses):
    with refuses("not those of 3 blocks"):
        choose(CutConfig(blocks=3, metric="residual"), RECORD, candidates=listed([0.1] * 4))
