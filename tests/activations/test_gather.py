"""Least squares through capture, statistics and fit is `torch.linalg.lstsq` on the stacked rows, however batched."""

import pytest
import torch
from given import cut_of

from replaceme.activations import capture
from replaceme.activations.capture import Activations
from replaceme.activations.gather import Gathered, gather_groups, shard_batches
from replaceme.activations.statistics import NAMES, Statistics
from replaceme.calibration.tokens import Tokens
from replaceme.config.fits import FitConfig
from replaceme.fitting.fit_cut import fit_cut
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import resolve
from replaceme.transforms.closed_form import fit_least_squares

CUT = (2, 5)


def gather_cut(model, family, tokens, cut, batch_size, shard=0, shards=1):
    """Return statistics of a cut of one group, as a job of the `gram` step makes them."""
    return gather_groups(model, family, shard_batches(tokens, batch_size, shard, shards), [cut])[0]


def fitted(model, family, tokens, batch_size=4, shards=1):
    """Return the transform from `shards` jobs, added up as the `sum` step does."""
    parts = [gather_cut(model, family, tokens, CUT, batch_size, shard, shards) for shard in range(shards)]
    return fit_least_squares(Statistics.sum(parts)).matrix


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def same_bits(one, two):
    return all(torch.equal(torch.as_tensor(getattr(one, n)), torch.as_tensor(getattr(two, n))) for n in NAMES)


@pytest.mark.parametrize(("start", "end"), [(1, 2), (2, 5), (5, 6), (1, 6)])
def test_least_squares_equals_lstsq_on_the_rows(llama, make_tokens, blocks_of, brute_rows, start, end):
    tokens = make_tokens(samples=40)
    hidden, outputs, _ = brute_rows(llama, tokens)
    m, r = outputs[start - 1], hidden[end - 1] - hidden[start - 1] + outputs[start - 1]
    best = torch.linalg.lstsq(m, r).solution
    expected = float((m @ best - r).square().sum() / r.square().sum())
    transform = fit_least_squares(gather_cut(*blocks_of(llama, "float64"), tokens, (start, end), 40))
    explicit = float((m @ transform.matrix - r).square().sum() / r.square().sum())
    print(f"[{start}, {end}): residual {expected:.4f}, rows {explicit / expected - 1:.1e},", end=" ")
    print(f"report {transform.report['residual'] / expected - 1:.1e}, T {relative(transform.matrix, best):.1e}")
    assert 0.01 < expected < 1, "there is something to fit and something left"
    assert abs(explicit - expected) <= 1e-8 * expected
    assert abs(transform.report["residual"] - expected) <= 1e-8 * expected
    assert transform.report["tokens"] == tokens.count == len(m)


@pytest.mark.parametrize("shards", [3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shards_of_the_same_batches_add_up(llama, make_tokens, blocks_of, dtype, shards):
    model, family = blocks_of(llama, dtype)
    tokens = make_tokens(samples=45)
    difference = relative(fitted(model, family, tokens, shards=shards), fitted(model, family, tokens))
    print(f"{dtype}, {shards} shards: {difference:.1e}")
    assert difference <= 1e-10


LAYOUTS = {
    "left": {"side": "left"},
    "right, wide": {"extra": 13},
    "left, wide": {"side": "left", "extra": 13},
    "another padding id": {"filler": 41},
    "left, another padding id": {"side": "left", "filler": 41},
}
# float64 weights, but norms, rotary angles and their rounding stay float32 inside transformers
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_changes_nothing(llama, make_tokens, blocks_of, dtype, layout):
    model, family = blocks_of(llama, dtype)
    plain = fitted(model, family, make_tokens(samples=40))
    difference = relative(fitted(model, family, make_tokens(samples=40, **LAYOUTS[layout])), plain)
    print(f"{dtype}, {layout}: {difference:.1e}")
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_batch_size_changes_nothing(llama, make_tokens, blocks_of, dtype, batch_size):
    model, family = blocks_of(llama, dtype)
    tokens = make_tokens(samples=40)
    difference = relative(fitted(model, family, tokens, batch_size), fitted(model, family, tokens))
    print(f"{dtype}, batches of {batch_size}: {difference:.1e}")
    assert difference <= TOLERANCE[dtype]


@pytest.mark.parametrize("filler", [1, 3, 65])
def test_right_padding_ids_change_no_bit(llama, make_tokens, blocks_of, filler):
    model, family = blocks_of(llama)
    one, two = (gather_cut(model, family, make_tokens(filler=f), CUT, 4) for f in (0, filler))
    assert same_bits(one, two)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30], ids=str)
def test_masked_rows_are_never_read(make_tokens, poison):
    generator = torch.Generator().manual_seed(0)
    mask = make_tokens().mask
    states = [torch.randn(*mask.shape, 8, generator=generator) for _ in range(3)]
    spoilt = [torch.where(mask[..., None], state, poison) for state in states]

    def statistics(a, b, m):
        gathered = Gathered([CUT])
        gathered.add(Activations(mask, {1: a, 4: b}, {1: m}))
        return gathered.statistics()[0]

    assert same_bits(statistics(*states), statistics(*spoilt))


def test_all_cuts_in_one_pass_equal_one_pass_each(llama, make_tokens, blocks_of):
    model, family = blocks_of(llama)
    tokens, cuts = make_tokens(), [(1, 3), (2, 4), (4, 6)]
    together = gather_groups(model, family, tokens.batches(4), cuts)
    for cut, found in zip(cuts, together, strict=True):
        assert same_bits(found, gather_cut(model, family, tokens, cut, 4))


def test_two_runs_give_the_same_bits(llama, make_tokens, blocks_of):
    one, two = (gather_cut(*blocks_of(llama), make_tokens(), CUT, 4) for _ in range(2))
    assert same_bits(one, two)
    assert torch.equal(fit_least_squares(one).matrix, fit_least_squares(two).matrix)


def test_more_shards_than_batches_are_refused(llama, make_tokens, blocks_of, refuses):
    with refuses("7 shards for 6 batches leave shard 0 empty", "lower `shards`"):
        gather_cut(*blocks_of(llama), make_tokens(samples=24), CUT, 4, 0, 7)


def test_a_planted_linear_map_is_recovered(make_llama, make_tokens, blocks_of, tmp_path):
    """Removed blocks that each add M A to the stream, M the carrier's MLP output: LS finds I + 2 A, and the pruned
    model is the original."""
    from replaceme.models.loading import load_causal_model
    from replaceme.surgery.fold import merge

    folder = make_llama()
    planted = torch.randn(16, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)

    def plant(layers):
        seen = {}
        layers[1].mlp.register_forward_hook(lambda m, i, output: seen.update(m=output))
        for block in (2, 3):
            layers[block].forward = lambda hidden_states, **_: hidden_states + seen["m"] @ planted.to(seen["m"].dtype)

    model, family = blocks_of(folder, "float64")
    plant(model.layers)
    tokens = make_tokens(samples=40)
    transform = fit_least_squares(gather_cut(model, family, tokens, (2, 4), 4))
    expected = torch.eye(16, dtype=torch.float64) + 2 * planted
    print(f"planted map recovered to {relative(transform.matrix, expected):.1e}")
    assert relative(transform.matrix, expected) <= 1e-6
    assert transform.report["residual"] <= 1e-12
    merge(folder, cut_of([[2, 4]], 6), [transform], tmp_path / "out", {})
    original = load_causal_model(folder, "float32", "cpu")
    plant(original.model.layers)
    ids = tokens.input_ids[:1]
    found, wanted = load_causal_model(tmp_path / "out", "float32", "cpu")(ids).logits, original(ids).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_blocks_that_do_nothing_give_the_identity(make_llama, make_tokens, blocks_of, tmp_path):
    """Removed blocks that add nothing to the stream: R = M, T = I."""
    from replaceme.models.loading import load_causal_model
    from replaceme.surgery.fold import merge

    def silence(model):
        for block in (2, 3):
            model.model.layers[block].self_attn.o_proj.weight.zero_()
            model.model.layers[block].mlp.down_proj.weight.zero_()

    folder = make_llama(edit=silence)
    tokens = make_tokens(samples=40)
    transform = fit_least_squares(gather_cut(*blocks_of(folder), tokens, (2, 4), 4))
    assert relative(transform.matrix, torch.eye(16, dtype=torch.float64)) <= 1e-6
    merge(folder, cut_of([[2, 4]], 6), [transform], tmp_path / "out", {})
    ids = tokens.input_ids[:1]
    found, wanted = (load_causal_model(f, "float32", "cpu")(ids).logits for f in (tmp_path / "out", folder))
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_one_sequence_of_one_token(llama, blocks_of):
    one = Tokens(torch.tensor([[9]]), torch.ones(1, 1, dtype=torch.bool))
    assert gather_cut(*blocks_of(llama), one, CUT, 4).tokens == 1


@pytest.mark.parametrize(
    ("source", "fit", "count"),
    [
        ("gemma", {}, 2),
        ("gemma", {"placement": "down_proj", "recycle": 0.25, "ridge_relative": 0.01}, 3),
        ("llama", {"transform": "magnitude", "placement": "upstream"}, 2),
    ],
    ids=["sums and gains", "neurons, sums and gains", "sums and ratios"],
)
def test_groups_on_one_model_share_their_passes(source, fit, count, request, make_tokens, blocks_of, monkeypatch):
    """Each group has the bits that it has alone."""
    folder = request.getfixturevalue(source)
    record, (model, family) = resolve(str(folder)), blocks_of(folder, "float32")
    passes, groups = Passes(model, family, make_tokens(samples=9), 4, "float32"), [(1, 2), (3, 5)]

    def fitted(some):
        return fit_cut(FitConfig(**fit), some, record, None, lambda: passes, family)

    done = []
    monkeypatch.setattr(capture, "collect", lambda *given, run=capture.collect: done.append(run(*given)))
    together = fitted(groups)
    assert len(done) == count
    for group, one in zip(groups, together, strict=True):
        (alone,) = fitted([group])
        assert torch.equal(one.matrix, alone.matrix) and one.gain == alone.gain and one.report == alone.report
        assert (one.gain is None) == (source == "llama")
