"""Sums over tokens: exact in float64, additive over shards, blind to masked rows, safe on disk."""

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.activations.statistics import NAMES, TENSORS, Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_tensors, save_tensors


def batch(tokens, hidden, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(tokens, hidden, generator=generator)
    return m.to(dtype), (m.roll(1, -1) + torch.randn(tokens, hidden, generator=generator)).to(dtype)


def of(m, r, mask=None, weights=None):
    statistics = Statistics.zeros(m.shape[-1])
    statistics.add_batch(m, r, mask, weights)
    return statistics


def assert_close(a, b, tolerance=1e-12):
    assert a.tokens == b.tokens
    for name in TENSORS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == torch.float64
        assert (left - right).norm() <= tolerance * right.norm(), name


def test_is_the_float64_sum_of_float32_rows():
    m, r = batch(301, 17)
    weights = torch.rand(301, generator=torch.Generator().manual_seed(1))
    found = of(m, r, weights=weights)
    m, r, w = m.double(), r.double(), weights.double()
    expected = Statistics(
        (w[:, None] * m).T @ m, (w[:, None] * m).T @ r, (w * r.square().sum(1)).sum(), w @ m, w @ r, 301, w.sum()
    )
    assert_close(found, expected, 1e-14)


def test_a_target_given_as_terms_is_their_sum():
    m, a = batch(60, 9)
    b = batch(60, 9, seed=1)[1]
    mask = torch.arange(60) % 3 != 0
    assert_close(of(m, (a, b, m), mask), of(m.double(), a.double() - b.double() + m.double(), mask), 1e-14)


def test_a_token_has_a_row_in_each_stream():
    """They are rows like any other, counted as one token, with its mask and weight."""
    m, r = (rows.view(5, 4, 3, 9) for rows in batch(60, 9))
    mask, weights = torch.arange(20).view(5, 4) % 3 != 0, torch.rand(5, 4) + 0.5
    found, expected = of(m, r, mask, weights), of(m[mask].flatten(0, 1), r[mask].flatten(0, 1), None,
                                                  weights[mask].repeat_interleave(3))  # fmt: skip
    assert found.tokens == 13 and expected.tokens == 39
    assert_close(replace(found, tokens=39), expected, 1e-14)
    assert of(m, r, mask).total_weight == 39


def test_total_weight_is_the_token_count_without_weights():
    found = of(*batch(20, 3))
    assert found.total_weight.item() == found.tokens == 20
    values = {name: getattr(found, name) for name in NAMES if name != "total_weight"}
    assert Statistics(**values).total_weight.item() == 20


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_padding_changes_nothing(padding, poison):
    m, r = batch(60, 9)
    plain = of(m, r)
    filler = torch.full((4, 5, 9), poison)
    order = (lambda rows: (filler, rows)) if padding == "left" else (lambda rows: (rows, filler))
    padded_m, padded_r = (torch.cat(order(rows.view(4, 15, 9)), dim=1) for rows in (m, r))
    mask = torch.ones(4, 20, dtype=torch.int64)
    mask[:, slice(0, 5) if padding == "left" else slice(15, 20)] = 0
    padded = of(padded_m, padded_r, mask)
    assert_close(padded, plain, 1e-14)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 80), hidden=st.integers(1, 9), shards=st.sampled_from([1, 3, 7]), seed=st.integers(0, 9999)
)
def test_shards_and_batches_add_up(tokens, hidden, shards, seed):
    m, r = batch(tokens, hidden, seed)
    parts = []
    for shard in range(shards):
        part = Statistics.zeros(hidden)
        for start in range(shard, tokens, shards):  # one token a batch
            part.add_batch(m[start : start + 1], r[start : start + 1])
        parts.append(part)
    whole = of(m, r)
    assert_close(Statistics.sum(parts), whole)
    assert_close(Statistics.sum(iter(parts)), whole)


def test_sum_is_deterministic_and_leaves_its_parts_alone():
    parts = [of(*batch(11, 5, seed)) for seed in range(7)]
    first = parts[0].gram.clone()
    a, b = Statistics.sum(parts), Statistics.sum(tuple(parts))
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)
    assert torch.equal(parts[0].gram, first)
    in_order = parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5] + parts[6]
    assert all(torch.equal(getattr(a, name), getattr(in_order, name)) for name in TENSORS)
    assert a.tokens == in_order.tokens == 77
    with pytest.raises(ReplaceMeError, match="no statistics"):
        Statistics.sum([])
    with pytest.raises(ReplaceMeError, match="5 x 5 and 4 x 4 channels"):
        parts[0] + Statistics.zeros(4)


def test_a_sum_holds_one_shard_at_a_time():
    alive = weakref.WeakSet()

    def shards():
        for seed in range(20):
            part = of(*batch(3, 2, seed))
            alive.add(part.gram)
            yield part
            del part
            assert len(alive) <= 1

    assert Statistics.sum(shards()).tokens == 60


@pytest.mark.parametrize("name", ["MLP output", "target"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused_and_nothing_is_added(name, poison):
    statistics = of(*batch(10, 4))
    before = statistics.gram.clone()
    m, r = batch(8, 4, seed=1)
    (m if name == "MLP output" else r)[3, 2] = poison
    with pytest.raises(ReplaceMeError, match=f"NaN or infinity in the {name} of 1 of 8 tokens"):
        statistics.add_batch(m, r)
    assert torch.equal(statistics.gram, before)
    assert statistics.tokens == 10
    statistics.add_batch(m, r, torch.arange(8) != 3)
    assert statistics.tokens == 17


def test_empty_batches_and_bad_shapes():
    statistics = Statistics.zeros(4)
    statistics.add_batch(torch.empty(2, 0, 4), torch.empty(2, 0, 4))
    statistics.add_batch(*batch(3, 4), torch.zeros(3, dtype=torch.bool))
    assert statistics.tokens == 0
    assert not statistics.gram.any()
    for m, r in ((torch.zeros(3, 5), torch.zeros(3, 5)), (torch.zeros(3, 4), torch.zeros(2, 4))):
        with pytest.raises(ReplaceMeError, match=r"must be \[..., 4\]"):
            statistics.add_batch(m, r)
    with pytest.raises(ReplaceMeError, match=r"mask must be \[3\]"):
        statistics.add_batch(*batch(3, 4), torch.ones(2))
    with pytest.raises(ReplaceMeError, match=r"weights must be \[3\]"):
        statistics.add_batch(*batch(3, 4), weights=torch.ones(3, 1))


def test_save_and_load(tmp_path):
    path = tmp_path / "sub" / "gram.safetensors"
    saved = of(*batch(10, 4))
    saved.save(path, {"block": 3})
    loaded, metadata = Statistics.load(path)
    assert metadata == {"block": 3}
    assert loaded.tokens == 10
    assert all(torch.equal(getattr(loaded, name), getattr(saved, name)) for name in TENSORS)


def test_groups_in_one_file(tmp_path):
    path = tmp_path / "gram.safetensors"
    groups = [of(*batch(10, 4)), of(*batch(7, 4, seed=1))]
    Statistics.save_all(path, groups, {"groups": [[1, 2], [3, 4]]})
    for number, saved in enumerate(groups):
        loaded, metadata = Statistics.load(path, number)
        assert metadata == {"groups": [[1, 2], [3, 4]]} and loaded.tokens == saved.tokens
        assert all(torch.equal(getattr(loaded, name), getattr(saved, name)) for name in TENSORS)
    with pytest.raises(ReplaceMeError, match="not statistics"):
        Statistics.load(path, 2)


def test_rows_wider_than_their_targets(tmp_path):
    m, r = batch(50, 9)[0], batch(50, 4, seed=1)[1]
    statistics = Statistics.zeros(4, width=9)
    statistics.add_batch(m, r)
    assert (statistics.width, statistics.hidden_size) == (9, 4)
    assert torch.allclose(statistics.cross, m.double().T @ r.double(), rtol=1e-12)
    statistics.save(tmp_path / "gram.safetensors")
    assert torch.equal(Statistics.load(tmp_path / "gram.safetensors")[0].cross, statistics.cross)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gram", torch.zeros(4, 3, dtype=torch.float64), "gram is"),
        ("gram", torch.zeros((), dtype=torch.float64), "gram is"),
        ("cross", torch.zeros(4, 4), "cross is torch.float32"),
        ("sum_target", torch.zeros(5, dtype=torch.float64), "sum_target is"),
        ("tokens", torch.tensor(1.5), "tokens is not one integer"),
        ("foreign", torch.zeros(1), "not statistics"),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, name, value, message):
    path = tmp_path / "gram.safetensors"
    of(*batch(10, 4)).save(path)
    tensors, _ = load_tensors(path)
    save_tensors(path, tensors | {f"0.{name}": value}, {})
    with pytest.raises(ReplaceMeError, match=message) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gpu_agrees_with_the_cpu(dtype):
    m, r = batch(2000, 130, dtype=dtype)
    mask = torch.rand(2000, generator=torch.Generator().manual_seed(1)) < 0.8
    m[~mask] = float("nan")
    on_gpu = Statistics.zeros(130, "cuda")
    on_gpu.add_batch(m.cuda(), r.cuda(), mask)
    assert_close(on_gpu.to("cpu"), of(m, r, mask), 1e-6)
