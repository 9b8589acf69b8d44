"""Blocks that keep several residual streams (hyper-connections): M in each stream, its fit, its metrics, its fold."""

import probe_all
import pytest
import torch
from transformers import AutoConfig

import replaceme
from replaceme.activations.capture import Wanted, capture
from replaceme.activations.gather import gather_groups
from replaceme.activations.hooks import silenced
from replaceme.activations.open_model import load_model
from replaceme.activations.row_collector import RowCollector
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.cuts.after_fit import measure_candidates
from replaceme.cuts.distances import measure
from replaceme.fitting import pair
from replaceme.fitting.passes import Passes
from replaceme.methods.registry import check_section
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.loading import Held, load_causal_model
from replaceme.models.model_config import family_of
from replaceme.probing.describe import tiny_of
from replaceme.probing.model import build
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.closed_form import fit_least_squares

# streams mixed in each block, behind a table of experts by token; indices handed on beside them; all in one axis
TYPES = {
    "deepseek_v4": {"ffn.experts.*.w2.weight", "ffn.shared_experts.w2.weight"},
    "hy_v4": {"mlp.down_proj.weight", "mlp.experts.down_proj", "mlp.shared_experts.down_proj.weight"},
    "qwen4_exp_text": {"mlp.experts.*.down_proj.weight", "mlp.shared_expert.down_proj.weight"},
}
EXACT = {"hy_v4": 1e-5}  # relative: it adds in float32; others in float64, of which this is far from the limit
START, END = GROUP = (3, 5)
ALL = Wanted(frozenset({START - 1, END - 1}), frozenset({START - 1}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    """A function that gives the folder of a small model of a type, made once."""
    made = {}

    def folder(model_type):
        if model_type not in made:
            config = AutoConfig.for_model(model_type, **probe_all.OWN.get(model_type, {})).to_dict()
            model = build(tiny_of(config, "m"))
            for name, one in model.named_buffers():
                if name.endswith("tid2eid"):  # zeros send all tokens to one expert
                    one.copy_(torch.stack([torch.randperm(4)[:2] for _ in one]))
            made[model_type] = tmp_path_factory.mktemp(model_type)
            model.save_pretrained(made[model_type])
            tokenizer.save_pretrained(made[model_type])
        return made[model_type]

    return folder


@pytest.fixture(scope="module", params=TYPES)
def passes(request, saved, make_tokens):
    """Forward passes of a small model of each type, which a probe has proved, in float64."""
    folder = saved(request.param)
    model, family = load_causal_model(folder, "float64", "cpu"), family_of(read_config(folder), "m")
    model.set_experts_implementation("eager")  # the other has no float64
    return Passes(model.base_model, family, make_tokens(), 8, "float64", headed=model)


@pytest.fixture
def exact(passes):
    """Relative difference that the type's own precision leaves."""
    return EXACT.get(passes.model.config.model_type, 1e-10)


def assert_close(one, other, exact):
    assert (one - other).norm() <= exact * other.norm()


def by_hand(passes):
    """Return states and what the carrier's MLP adds, [tokens, streams, hidden] each, by leaving the MLP out."""
    states = {number: [] for number in (START - 1, END - 1)}
    without = []
    module = passes.family.block_modules(passes.model)[START - 1].get_submodule("mlp")
    for batch in passes.tokens.batches(8):
        for number, kept in states.items():
            kept.append(state_of(passes, batch, number))
        undo = silenced(module)
        without.append(state_of(passes, batch, START - 1))
        undo()
    before, after = (torch.cat(kept) for kept in states.values())
    return before, after, before - torch.cat(without)


def state_of(passes, batch, number):
    [found] = capture(passes.model, passes.family, [batch], Wanted(frozenset({number})))
    return found.hidden_states[number][found.mask].reshape(int(found.mask.sum()), 4, -1)


def test_the_probe_finds_all_that_writes_to_the_streams(passes):
    assert TYPES[passes.model.config.model_type] <= set(passes.family.fold)


def test_m_is_what_the_mlp_adds_to_each_stream(passes, exact):
    added = [one.mlp_output[START - 1][one.mask] for one in capture(passes.model, passes.family, batches(passes), ALL)]
    added, expected = torch.cat(added), by_hand(passes)[2]
    assert_close(added, expected, exact)
    assert (expected[:, 0] - expected[:, 1]).norm() > 0.05 * expected.norm(), "streams have weights of their own"


def batches(passes):
    return passes.tokens.batches(8)


def test_without_blocks_the_state_is_that_before_them(passes):
    [batch, *_] = batches(passes)
    kept = state_of(passes, batch, START - 1)
    after = state_of(passes, batch, END)
    with shortened(passes.model, passes.family, [GROUP], [None]):
        assert torch.equal(state_of(passes, batch, END - 1), kept)
        assert not torch.allclose(state_of(passes, batch, END), after)


def test_the_fit_is_least_squares_over_all_streams(passes, exact):
    before, after, added = by_hand(passes)
    [statistics] = gather_groups(passes.model, passes.family, batches(passes), [GROUP])
    assert statistics.tokens == passes.tokens.count
    rows, target = (one.flatten(0, 1) for one in (added, after - before + added))
    expected = torch.linalg.lstsq(rows, target, driver="gelsd").solution
    found = fit_least_squares(statistics)
    assert_close(found.matrix, expected, 1e3 * exact)
    left = (rows @ expected - target).square().sum() / target.square().sum()
    assert found.report["residual"] == pytest.approx(float(left), rel=exact)

    [entry] = [one for one in candidates(passes) if (one["start"], one["end"]) == GROUP]
    assert entry["residual"] == pytest.approx(float(left), rel=exact)
    repaired = before - added + added @ expected
    for name, one in (("cosine", before), ("cosine_after_fit", repaired)):
        distance = 1 - torch.cosine_similarity(one.flatten(1), after.flatten(1)).mean()
        assert entry[name] == pytest.approx(float(distance), rel=1e-6)
    assert entry["kl"] > 0 and abs(entry["loss"]) < 10 * entry["kl"] + 1


def candidates(passes):
    held_out = {"": passes.tokens.first(2)}
    return measure_candidates(passes.headed, passes.family, passes.tokens, [END - START], 8, held_out)


def test_distances_are_of_all_streams_together(passes):
    before, after, _ = (one.flatten(1) for one in by_hand(passes))
    found = measure(passes.model, passes.family, passes.tokens, 8)
    expected = {"cosine_all": 1 - torch.cosine_similarity(before, after), "l2_all": (before - after).norm(dim=1)}
    for name, values in expected.items():
        assert float(found[name][START - 1, END - 1]) == pytest.approx(float(values.mean()), rel=1e-5)


def test_a_token_counts_by_the_energy_of_all_its_streams(passes):
    before, after, added = by_hand(passes)
    target = after - before + added
    regression = FitConfig(weighting="inverse_energy").regression
    [found] = gather_groups(passes.model, passes.family, batches(passes), [GROUP], regression)
    scaled = added / target.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(found.gram, (scaled.mT @ scaled).sum(0), rtol=1e-5)
    assert float(found.target_energy) == pytest.approx(passes.tokens.count, rel=1e-5)


@pytest.mark.parametrize("same", [-1, 1e-3], ids=["all of it", "from the carrier on"])
def test_training_through_the_model_begins_where_it_can(passes, same, monkeypatch):
    """Where blocks get more from the one before than the state, it begins with the first."""
    monkeypatch.setattr(pair, "SAME", same)
    start = fit_least_squares(*gather_groups(passes.model, passes.family, batches(passes), [GROUP]))
    both = pair.Pair(passes, [GROUP], [start])
    both.share([0, 2, 4], 2)
    assert (both.unchanged.before is not None) == (same > 0 and not passes.family.handed)
    values = both.descend([4, 0])
    plain = pair.Pair(passes, [GROUP], [start])
    plain.unchanged.before = None
    assert torch.allclose(values, plain.divergence([4, 0]), rtol=1e-4, atol=1e-6)
    assert both.parameters[0].grad.norm() > 0


def test_what_is_saved_is_what_was_fitted(saved, texts, tmp_path):
    """Plain transformers, in a fresh process, has the logits of the original with hooks."""
    given = {"texts": texts, "device": "cpu", "cut": CutConfig(blocks=2, start=2), "fit": FitConfig()}
    record = replaceme.prune(saved("deepseek_v4"), out=tmp_path / "out", **given)
    assert 0 < record["fit"]["residual"] < record["fit"]["residual_identity"]
    assert resolve(str(tmp_path / "out")).num_blocks == resolve(str(saved("deepseek_v4"))).num_blocks - 2


@pytest.mark.parametrize(
    ("fit", "what"),
    [
        ({"placement": "down_proj"}, "placement down_proj is of one residual stream"),
        ({"placement": "block"}, "placement block is of one residual stream"),
        ({"objective": "cosine"}, "a fit over rows is of one residual stream"),
        ({"transform": "collapse"}, "transform collapse is of one residual stream"),
    ],
)
def test_what_is_of_one_stream_is_refused_before_work(saved, refuses, fit, what):
    with refuses(f"m: {what}, its blocks keep several; use "):
        check_section(read_config(saved("deepseek_v4")), FitConfig(**fit), "m")


def test_what_a_pass_cannot_give_is_refused_by_it(saved, passes, refuses):
    """Where something beside the state is handed on, or a state has several streams, no block runs alone."""
    with refuses("models of this type are not streamed; use `streaming: never`"):
        load_model(saved(passes.model.config.model_type), "float32", "cpu", False, Held(streaming="always"))
    with refuses("rows: a fit over rows is of one residual stream"):
        RowCollector(GROUP, passes.tokens.count).bytes(passes.model, passes.family)
