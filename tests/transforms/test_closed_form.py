"""Closed-form fits against lstsq and brute force on the rows."""

import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.activations.statistics import Statistics
from replaceme.config.transforms import STRUCTURES
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import save_tensors
from replaceme.transforms.closed_form import fit_identity, fit_least_squares
from replaceme.transforms.registry import fit
from replaceme.transforms.transform import Transform, r_squared, residual


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of(m, r, weights=None):
    statistics = Statistics.zeros(m.shape[-1])
    statistics.add_batch(m, r, weights=weights)
    return statistics


def on_rows(m, r, matrix):
    """Residual from the rows themselves."""
    return float((m @ matrix - r).square().sum() / r.square().sum())


def conditioned(tokens, hidden, condition, seed):
    """Rows whose Gram has about this condition number, in directions mixed over all channels."""
    left, _ = torch.linalg.qr(normal(tokens, hidden, seed=seed))
    right, _ = torch.linalg.qr(normal(hidden, hidden, seed=seed + 1))
    return left * torch.logspace(0, -0.5 * torch.log10(torch.tensor(condition)).item(), hidden).double() @ right


@pytest.mark.parametrize("hidden", [1, 7, 64])
def test_planted_map_is_recovered(hidden):
    m, planted = normal(500, hidden, seed=0), normal(hidden, hidden, seed=1)
    found = fit_least_squares(of(m, m @ planted))
    assert (found.matrix - planted).norm() < 1e-10 * planted.norm()
    assert found.report["solver"] == "cholesky"
    assert found.report["rank"] == hidden
    assert found.report["residual"] < 1e-12
    assert found.report["r2"] > 1 - 1e-12


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e9, 1e12])
def test_residual_equals_lstsq(condition):
    m = conditioned(400, 48, condition, seed=0)
    r = m @ normal(48, 48, seed=2) + 0.05 * normal(400, 48, seed=3)
    m[:, ::5] *= 1e4  # channels of different sizes, as in real activations
    found = fit_least_squares(of(m, r))
    expected = on_rows(m, r, torch.linalg.lstsq(m, r, driver="gelsd").solution)
    assert found.report["solver"] == "cholesky"
    assert on_rows(m, r, found.matrix) == pytest.approx(expected, rel=1e-8)
    # from statistics alone the large entries of T multiply the rounding of the sums
    assert found.report["residual"] == pytest.approx(expected, rel=1e-8 if condition < 1e10 else 1e-6)


def test_beyond_float64_the_noise_directions_are_left_out():
    m = conditioned(400, 48, 1e18, seed=0)
    r = m @ normal(48, 48, seed=2) + 0.05 * normal(400, 48, seed=3)
    found = fit_least_squares(of(m, r))
    rank = found.report["rank"]
    assert found.report["solver"] == "eigh"
    assert 30 < rank < 48
    best = on_rows(m, r, torch.linalg.lstsq(m, r, driver="gelsd").solution)
    left, _, _ = torch.linalg.svd(m, full_matrices=False)
    explained = (left.T @ r).square().sum(1)  # by each direction, strongest first
    truncated = best + float(explained[rank - 1 :].sum() / r.square().sum())
    assert best < on_rows(m, r, found.matrix) < truncated
    assert found.report["residual"] == pytest.approx(on_rows(m, r, found.matrix), rel=1e-4)
    assert found.matrix.norm() < 1e8


def test_fewer_tokens_than_channels_warns_and_takes_the_least_norm(caplog):
    m, r = normal(20, 32, seed=0), normal(20, 32, seed=1)
    statistics = of(m, r)
    with caplog.at_level(logging.WARNING):
        found = fit_least_squares(statistics)
    assert "20 calibration tokens for 32 channels" in caplog.text
    assert found.report["rank"] == 20
    assert found.report["solver"] == "eigh"
    assert on_rows(m, r, found.matrix) < 1e-20
    scale = statistics.gram.diagonal().sqrt()
    least = torch.linalg.pinv(m / scale) @ r / scale[:, None]
    assert (found.matrix - least).norm() < 1e-8 * least.norm()


def test_dead_and_duplicated_channels():
    m, r = normal(200, 12, seed=0), normal(200, 12, seed=1)
    m[:, [0, 7]] = 0
    found = fit_least_squares(of(m, r))
    assert found.report["rank"] == 10
    assert found.report["solver"] == "cholesky"
    assert not found.matrix[[0, 7]].any()
    m[:, 5] = m[:, 6]
    found = fit_least_squares(of(m, r))
    assert found.report["rank"] == 9
    assert torch.allclose(found.matrix[5], found.matrix[6], atol=1e-12)
    expected = on_rows(m, r, torch.linalg.lstsq(m, r, driver="gelsd").solution)
    assert found.report["residual"] == pytest.approx(expected, rel=1e-8)
    silent = fit_least_squares(of(torch.zeros_like(m), r))
    assert silent.report["rank"] == 0
    assert silent.report["residual"] == 1.0


@pytest.mark.parametrize(("ridge", "relative"), [(3.0, 0.0), (0.0, 0.1), (1e4, 1.0)])
def test_ridge_equals_brute_force(ridge, relative):
    m, r = normal(100, 10, seed=0) * torch.logspace(-2, 2, 10).double(), normal(100, 10, seed=1)
    found = fit_least_squares(of(m, r), ridge=ridge, ridge_relative=relative)
    alpha = ridge + relative * float((m.T @ m).diagonal().mean())
    assert found.report["ridge"] == pytest.approx(alpha)
    rows = torch.cat([m, alpha**0.5 * torch.eye(10, dtype=torch.float64)])
    expected = torch.linalg.lstsq(rows, torch.cat([r, torch.zeros(10, 10, dtype=torch.float64)])).solution
    assert (found.matrix - expected).norm() < 1e-10 * expected.norm()
    assert found.report["residual"] == pytest.approx(on_rows(m, r, found.matrix), rel=1e-10)


def test_weights_equal_repeated_rows():
    m, r = normal(50, 6, seed=0), normal(50, 6, seed=1)
    times = torch.arange(50) % 3
    weighted = fit_least_squares(of(m, r, times.double()))
    repeated = fit_least_squares(of(m.repeat_interleave(times, 0), r.repeat_interleave(times, 0)))
    assert torch.allclose(weighted.matrix, repeated.matrix, rtol=1e-10)
    assert weighted.report["r2"] == pytest.approx(repeated.report["r2"], rel=1e-12)


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 40), hidden=st.integers(1, 8), seed=st.integers(0, 9999), mean=st.sampled_from([0.0, 10.0])
)
def test_quality_from_statistics_equals_quality_on_rows(tokens, hidden, seed, mean):
    m, r = normal(tokens, hidden, seed=seed) + mean, normal(tokens, hidden, seed=seed + 1) - mean
    statistics, matrix = of(m, r), normal(hidden, hidden, seed=seed + 2)
    assert residual(statistics, matrix) == pytest.approx(on_rows(m, r, matrix), rel=1e-9)
    spread = (r - r.mean(0)).square().sum()
    if tokens == 1:
        assert r_squared(statistics, matrix) is None
    else:
        expected = float(1 - (m @ matrix - r).square().sum() / spread)
        assert r_squared(statistics, matrix) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_shards_give_the_same_transform(shards):
    m = conditioned(700, 40, 1e6, seed=0)
    r = m @ normal(40, 40, seed=1) + 0.05 * normal(700, 40, seed=2)
    whole = fit_least_squares(of(m, r)).matrix
    parts = [of(m[shard::shards], r[shard::shards]) for shard in range(shards)]
    assert (fit_least_squares(Statistics.sum(parts)).matrix - whole).norm() < 1e-10 * whole.norm()


def test_same_bits_twice():
    m, r = normal(90, 33, seed=0), normal(90, 33, seed=1)
    first, second = fit_least_squares(of(m, r)), fit_least_squares(of(m.clone(), r.clone()))
    assert torch.equal(first.matrix, second.matrix)
    assert first.report == second.report


def test_identity():
    m = normal(50, 6, seed=0)
    r = m + 0.1 * normal(50, 6, seed=1)
    found = fit_identity(of(m, r))
    assert torch.equal(found.matrix, torch.eye(6, dtype=torch.float64))
    assert found.report["residual"] == pytest.approx(on_rows(m, r, found.matrix), rel=1e-10)
    assert found.report["residual"] == fit_least_squares(of(m, r)).report["residual_identity"]
    assert torch.equal(fit_identity(hidden_size=6).matrix, found.matrix)
    with pytest.raises(ReplaceMeError, match="hidden size"):
        fit_identity()


def test_fit_dispatches_by_name():
    statistics = of(normal(50, 6, seed=0), normal(50, 6, seed=1))
    assert set(STRUCTURES) >= {"identity", "full"}
    assert torch.equal(fit(statistics).matrix, fit_least_squares(statistics).matrix)
    ridged = fit(statistics, "full", ridge=2.0).matrix
    assert torch.equal(ridged, fit_least_squares(statistics, ridge=2.0).matrix)
    assert fit(statistics, "identity").report["solver"] == "identity"
    with pytest.raises(ReplaceMeError, match="unknown transform 'fuller'; choose one of full, identity"):
        fit(statistics, "fuller")


def test_bad_statistics_are_refused():
    good = of(normal(50, 6, seed=0), normal(50, 6, seed=1))
    for options in ({"ridge": -1.0}, {"ridge_relative": float("nan")}, {"ridge": float("inf")}):
        with pytest.raises(ReplaceMeError, match="must be finite and not negative"):
            fit_least_squares(good, **options)
    with pytest.raises(ReplaceMeError, match="no unmasked calibration tokens"):
        fit_least_squares(Statistics.zeros(6))
    with pytest.raises(ReplaceMeError, match="no energy"):
        fit_least_squares(of(normal(50, 6, seed=0), torch.zeros(50, 6)))
    negative = of(normal(50, 6, seed=0), normal(50, 6, seed=1))
    negative.gram.neg_()
    with pytest.raises(ReplaceMeError, match="negative diagonal"):
        fit_least_squares(negative)
    good.cross[2, 3] = float("nan")
    with pytest.raises(ReplaceMeError, match="NaN or infinity in cross"):
        fit_least_squares(good)


def test_save_and_load(tmp_path):
    path = tmp_path / "transform.safetensors"
    saved = fit_least_squares(of(normal(50, 6, seed=0), normal(50, 6, seed=1)))
    json.dumps(saved.report, allow_nan=False)
    saved.save(path, {"cut": [2, 5]})
    loaded, metadata = Transform.load(path)
    assert torch.equal(loaded.matrix, saved.matrix)
    assert loaded.report == saved.report
    assert metadata == {"cut": [2, 5]}
    for tensors in ({"other": torch.zeros(2, 2)}, {"transform": torch.zeros(2, 2)}, {"transform": torch.zeros(2, 3)}):
        save_tensors(path, tensors, {"report": {}, "metadata": {}})
        with pytest.raises(ReplaceMeError, match=r"transform\.safetensors"):
            Transform.load(path)


@pytest.mark.gpu
def test_gpu_statistics_give_the_same_fit():
    m = normal(3000, 96, seed=0)
    statistics = of(m, m @ normal(96, 96, seed=1) + normal(3000, 96, seed=2))
    on_cpu, on_gpu = fit_least_squares(statistics), fit_least_squares(statistics.to("cuda"))
    assert (on_gpu.matrix.cpu() - on_cpu.matrix).norm() < 1e-10 * on_cpu.matrix.norm()
