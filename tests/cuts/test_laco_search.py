"""LaCo's choice of blocks: the search against the paper's algorithm, its measure on the model that is written."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import replaceme
from replaceme import cli
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.choose import choose, kept_merges, removed_by
from replaceme.cuts.laco_search import Merged, merge, merging_candidates, search
from replaceme.models.loading import load_causal_model
from replaceme.surgery.fold import merge as fold
from replaceme.transforms.collapse import as_chosen, fit_collapse

RECORD = SimpleNamespace(num_blocks=6, parameters=1000, block_parameters=[100] * 6)
MERGING = {"search": "merging", "metric": "output"}


def weight(state, values):
    """What the blocks of a state weigh, where original block k weighs `values[k]`."""
    return [sum(c * values[one.carrier + k] for k, c in enumerate(one.coefficients)) for one in state]


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(-9, 9), min_size=8, max_size=8))
def test_the_coefficients_are_those_of_merges_one_after_another(data, values):
    """W_l + sum_k (W_(l+k) - W_l), also of blocks that are merged already."""
    state, expected = tuple(Merged(block) for block in range(8)), list(values)
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(state) - 1))
        count = data.draw(st.integers(0, len(state) - 1 - at))
        first = expected[at]
        summed = first + sum(other - first for other in expected[at + 1 : at + 1 + count])
        expected[at : at + 1 + count] = [summed]
        state = merge(state, at, count)
    assert weight(state, values) == expected
    assert all(sum(one.coefficients) == 1 for one in state)
    assert [one.carrier for one in state] == [0, *(one.span[1] for one in state[:-1])]


def algorithm(num_blocks, c, interval, similarity, lowest, highest, measure):
    """Algorithm 1 of the paper, on lists of the blocks that each layer holds, without a wanted number."""
    model = [[block] for block in range(num_blocks)]
    layer = highest - c
    while layer >= lowest:
        count = min(c - 1, len(model) - (num_blocks - highest) - 1 - layer)
        trial = [
            *model[:layer],
            [one for part in model[layer : layer + count + 1] for one in part],
            *model[layer + count + 1 :],
        ]
        if measure(trial) > similarity:
            model = trial
            layer = min(layer - interval, len(model) - (num_blocks - highest) - c)
        else:
            layer -= 1
    return model


@settings(max_examples=150, deadline=None)
@given(st.integers(6, 12), st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2), st.randoms())
def test_the_search_is_the_papers_algorithm(num_blocks, c, interval, first, last, random):
    known = {}

    def value(layers):
        return known.setdefault(tuple(map(tuple, layers)), random.random())

    def measure(state):
        return value([list(range(one.carrier, one.span[1])) for one in state])

    expected = algorithm(num_blocks, c, interval, 0.5, first - 1, num_blocks - last, value)
    cut = CutConfig(blocks=1, **MERGING, merge_blocks=c, interval=interval, keep_first=first, keep_last=last)
    tried = search(cut, num_blocks, num_blocks, measure, 0.5)
    spans = [(layer[0] + 1, layer[-1] + 1) for layer in expected if len(layer) > 1]
    assert [(one["start"], one["end"]) for one in kept_merges(tried)] == spans
    assert removed_by(tried) == num_blocks - len(expected)
    assert all(one["kept"] == (one["output"] < 0.5) for one in tried)


def test_it_ends_when_so_many_blocks_are_gone():
    """The last merge takes what is left to take: 3 of 6 blocks, two at a time."""
    cut = CutConfig(blocks=3, **MERGING, merge_blocks=3, interval=2)
    tried = search(cut, 6, 3, lambda state: 1.0, 0.5)
    assert [(one["start"], one["end"]) for one in kept_merges(tried)] == [(2, 3), (4, 6)]
    chosen = choose(cut, RECORD, candidates=tried)
    assert chosen.groups == [(2, 3), (4, 6)] and chosen.coefficients == [[0, 1], [-1, 1, 1]]


def test_what_was_merged_is_merged_again():
    """Blocks 4 and 5 of 6 into 3, then 2 and 3 into 1, the latter with -1, 1, 1 of W_3 .. W_5."""
    cut = CutConfig(blocks=3, **MERGING, merge_blocks=3, interval=1)
    tried = search(cut, 6, 3, lambda state: 1.0, 0.5)
    assert [(one["start"], one["end"]) for one in tried] == [(4, 6), (2, 3)]
    cut = CutConfig(blocks=4, **MERGING, merge_blocks=3, interval=1)
    tried = search(cut, 6, 4, lambda state: 1.0, 0.5)
    assert [(one["start"], one["end"]) for one in tried] == [(4, 6), (2, 6)]
    chosen = choose(cut, RECORD, candidates=tried)
    assert chosen.groups == [(2, 6)] and chosen.coefficients == [[-1, 1, -1, 1, 1]]


def similarity(one, other, tokens):
    """Mean over sequences of the cosine of the last states, one vector of all tokens of each, sequence by sequence."""
    found = []
    for ids, mask in zip(tokens.input_ids, tokens.mask, strict=True):
        states = [model.base_model(ids[mask][None]).last_hidden_state.flatten().double() for model in (one, other)]
        found.append(torch.cosine_similarity(*states, dim=0))
    return float(torch.stack(found).mean())


def test_the_measure_is_that_of_the_model_that_is_written(llama, make_tokens, blocks_of, tmp_path):
    """The last merge kept, folded by the fit `collapse`, has the similarity that the search found."""
    _, family = blocks_of(llama)
    tokens = make_tokens(samples=5, longest=12)
    cut = CutConfig(blocks=4, **MERGING, merge_blocks=2, interval=1, similarity=-1.0)
    model = load_causal_model(llama, "float32", "cpu")
    tried = merging_candidates(cut, RECORD, 4, model, family, tokens, 2)
    last = [one for one in tried if one["kept"]][-1]
    chosen = choose(cut, RECORD, candidates=tried)
    transforms = as_chosen(chosen, [fit_collapse(16)] * len(chosen.groups))
    fold(llama, chosen, transforms, tmp_path / "out", {})
    folded = load_causal_model(tmp_path / "out", "float32", "cpu")
    assert similarity(model, folded, tokens) == pytest.approx(1 - last["output"], abs=1e-5)
    assert len(folded.model.layers) == 2


def test_without_a_similarity_it_is_the_greatest_that_is_enough(llama, make_tokens, blocks_of, refuses):
    _, family = blocks_of(llama)
    tokens, model = make_tokens(samples=4, longest=12), load_causal_model(llama, "float32", "cpu")
    cut = CutConfig(blocks=3, **MERGING, merge_blocks=2, interval=1)
    given = (RECORD, 3, model, family, tokens, 4)
    tried = merging_candidates(cut, *given)
    least = min(1 - one["output"] for one in tried if one["kept"])
    above = int(least * 100) / 100  # the greatest hundredth below what was kept
    same = merging_candidates(cut.model_copy(update={"similarity": above}), *given)
    assert same == tried
    with refuses("cut: merging removes", "of 3 blocks above similarity", "lower `similarity`"):
        merging_candidates(cut.model_copy(update={"similarity": 0.9999}), *given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"search": "merging"}, "search merging and metric output go together"),
        ({"metric": "output"}, "search merging and metric output go together"),
        ({"interval": 3}, "interval is about merging"),
        ({**MERGING, "groups": 2}, "search merging finds how many groups there are; drop groups"),
        ({**MERGING, "start": 2}, "start places the cut by hand, nothing is measured; drop metric"),
        ({**MERGING, "position": "last"}, "metric output averages over all tokens"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        CutConfig(**{"blocks": 4, **options})


def test_too_many_blocks_and_candidates_of_another_search_are_refused(refuses):
    with refuses("cannot remove 4 of 6 blocks", "the first 2 and the last 1 stay"):
        choose(CutConfig(blocks=4, **MERGING, keep_first=2, keep_last=1), RECORD, candidates=[])
    with refuses("not those of merging 4 blocks", "measure them again"):
        choose(CutConfig(blocks=4, **MERGING), RECORD, candidates=[{"start": 1, "end": 2, "output": 0.1}])


def test_by_steps_and_in_one_go(llama, texts, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(texts))
    text = ["--dataset", str(tmp_path / "text.txt"), "--samples", "6", "--tokens", "16"]
    options = ["--blocks=3", "--search=merging", "--metric=output", "--merge-blocks=2", "--interval=1", "--samples=4"]
    assert cli.main(["tokens", str(llama), *text, "--out", str(tmp_path / "t.safetensors")]) == 0
    out = ["--out", str(tmp_path / "candidates.json")]
    assert cli.main(["candidates", str(llama), str(tmp_path / "t.safetensors"), *options, *out]) == 0
    cut = ["--candidates", str(tmp_path / "candidates.json"), "--out", str(tmp_path / "cut.json")]
    assert cli.main(["cut", str(llama), *options, *cut]) == 0
    chosen = json.loads((tmp_path / "cut.json").read_text())
    fit = ["--transform=collapse", "--out", str(tmp_path / "fit")]
    assert cli.main(["fit", str(llama), str(tmp_path / "cut.json"), *fit]) == 0
    merged = [str(tmp_path / "fit/transform.safetensors"), "--out", str(tmp_path / "merged")]
    assert cli.main(["merge", str(llama), str(tmp_path / "cut.json"), *merged]) == 0
    calibration = CalibrationConfig(dataset=str(tmp_path / "text.txt"), samples=6, tokens=16)
    section = CutConfig(blocks=3, **MERGING, merge_blocks=2, interval=1, samples=4)
    record = replaceme.prune(
        llama, calibration, cut=section, fit=FitConfig(transform="collapse"), out=tmp_path / "short", verify=False
    )
    assert record["cut"]["groups"] == chosen["groups"]
    one, other = (load_causal_model(tmp_path / name, "float32", "cpu").state_dict() for name in ("merged", "short"))
    assert all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()
