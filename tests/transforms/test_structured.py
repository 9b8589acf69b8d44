"""Fits of structured, sparse and cross-validated maps against brute force on the rows, in float64."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.activations.statistics import Statistics
from replaceme.config.transforms import STRUCTURES
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.registry import fit
from replaceme.transforms.ridge import Shards, fit_auto_ridge
from replaceme.transforms.scaling import fit_hadamard, fit_scalar, hadamard
from replaceme.transforms.solve import solve, solve_quickly
from replaceme.transforms.sparse import fit_elastic_net
from replaceme.transforms.structured import fit_diagonal, fit_low_rank, fit_lower_triangular, fit_orthogonal

HIDDEN = 9
OPTIONS = {"low_rank": {"rank": 2}, "sparse": {"l1": 0.1}}


def rows(tokens=200, hidden=HIDDEN, seed=0):
    """m and r float64 [tokens, hidden], channels of sizes 1 to 100, r about half explained by m."""
    generator = torch.Generator().manual_seed(seed)
    m, noise, mixing = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, hidden), (tokens, hidden), (hidden, hidden))
    )
    m = m * torch.logspace(0, 2, hidden, dtype=torch.float64)
    return m, m + 0.5 * m @ mixing + 20 * noise


def of(m, r):
    statistics = Statistics.zeros(m.shape[1])
    statistics.add_batch(m, r)
    return statistics


def loss(m, r, matrix):
    return float((m @ matrix - r).square().sum())


def penalised_rows(m, r, alpha, towards):
    """Rows whose plain least squares is the ridge: sqrt(alpha) I below m, sqrt(alpha) T0 below r."""
    eye = alpha**0.5 * torch.eye(m.shape[1], dtype=torch.float64)
    return torch.cat([m, eye]), torch.cat([r, eye @ origin(towards, m.shape[1])])


def origin(towards, hidden=HIDDEN):
    named = {"zero": torch.zeros(hidden, hidden).double(), "identity": torch.eye(hidden).double()}
    return named[towards] if isinstance(towards, str) else towards


WEIGHT = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
ORIGINS = pytest.mark.parametrize("towards", ["zero", "identity", WEIGHT], ids=["zero", "identity", "weight"])


@pytest.mark.parametrize("alpha", [0.0, 3.0, 1e5])
@ORIGINS
def test_ridge_towards_either_is_lstsq_on_augmented_rows(towards, alpha):
    m, r = rows()
    found = fit_least_squares(of(m, r), ridge=alpha, towards=towards)
    expected = torch.linalg.lstsq(*penalised_rows(m, r, alpha, towards), driver="gelsd").solution
    assert (found.matrix - expected).norm() < 1e-8 * expected.norm()


def test_a_huge_ridge_ends_at_what_it_shrinks_towards():
    m, r = rows()
    m[:, 3] = 0  # a dead channel keeps its row of the identity
    for towards in ("zero", "identity", WEIGHT):
        limit = origin(towards)
        found = fit_least_squares(of(m, r), ridge_relative=1e12, towards=towards).matrix
        assert (found - limit).norm() < 1e-6
        assert torch.equal(fit_least_squares(of(m, r), towards=towards).matrix[3], limit[3])


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize("alpha", [0.0, 50.0])
def test_diagonal_is_a_regression_for_each_channel(towards, alpha):
    m, r = rows()
    found = fit_diagonal(of(m, r), ridge=alpha, towards=towards).matrix
    wide, target = penalised_rows(m, r, alpha, towards)
    expected = torch.tensor([float(wide[:, i] @ target[:, i] / wide[:, i].square().sum()) for i in range(HIDDEN)])
    assert torch.allclose(found, torch.diag(expected.double()), rtol=1e-6, atol=1e-12)
    assert torch.equal(found, torch.diag(found.diagonal()))


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize("alpha", [0.0, 3.0, 1e6])
def test_scalar_is_a_regression_of_all_channels_at_once(towards, alpha):
    m, r = rows()
    found = fit_scalar(of(m, r), ridge=alpha, towards=towards)
    wide, target = penalised_rows(m, r, alpha, towards)
    expected = float(torch.linalg.lstsq(wide.reshape(-1, 1), target.reshape(-1, 1)).solution)
    assert torch.allclose(found.matrix, expected * torch.eye(HIDDEN, dtype=torch.float64), rtol=1e-8, atol=0)
    assert found.report["scale"] == pytest.approx(expected, rel=1e-8)
    assert found.report["residual"] == pytest.approx(loss(m, r, found.matrix) / float(r.square().sum()), rel=1e-8)


@pytest.mark.parametrize("size", [1, 2, 3, 12, 16, 24, 640])
def test_the_hadamard_basis_is_orthonormal_and_mixes_what_it_can(size):
    basis = hadamard(size)
    assert basis.shape == (size, size)
    assert (basis.T @ basis - torch.eye(size, dtype=torch.float64)).abs().max() < 1e-12
    power = size & -size
    if power == size:
        assert torch.allclose(basis.abs(), torch.full_like(basis, size**-0.5), rtol=1e-12)
    middle = (basis.abs() < 1e-12).double().sum(0).max()
    assert middle <= power, "an odd cosine is zero in its middle channel, everything else is mixed"


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize("alpha", [0.0, 3.0, 1e5])
@pytest.mark.parametrize("hidden", [1, 8, 12, HIDDEN])
def test_hadamard_is_a_regression_for_each_direction(hidden, alpha, towards):
    """The maps H diag(s) H^T are a linear family of d parameters: least squares over the flattened rows."""
    m, r = rows(hidden=hidden)
    found = fit_hadamard(of(m, r), ridge=alpha, towards=towards)
    wide, target = penalised_rows(m, r, alpha, towards)
    basis = hadamard(hidden)
    family = torch.stack([(wide @ torch.outer(basis[:, j], basis[:, j])).flatten() for j in range(hidden)], 1)
    factors = torch.linalg.lstsq(family, target.flatten()[:, None]).solution[:, 0]
    expected = (basis * factors) @ basis.T
    assert (found.matrix - expected).norm() < 1e-8 * expected.norm()
    assert found.report["smallest"] == pytest.approx(float(factors.min()), rel=1e-6, abs=1e-9)
    assert found.report["largest"] == pytest.approx(float(factors.max()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("structure", [fit_scalar, fit_hadamard], ids=["scalar", "hadamard"])
def test_scaling_of_nothing_is_the_origin(structure):
    m, r = torch.zeros(5, 4), torch.ones(5, 4)
    assert torch.equal(structure(of(m, r)).matrix, torch.zeros(4, 4, dtype=torch.float64))
    found = structure(of(m, r), towards="identity").matrix
    assert torch.allclose(found, torch.eye(4, dtype=torch.float64), atol=1e-15)


def test_orthogonal_is_the_best_rotation():
    m, r = rows()
    found = fit_orthogonal(of(m, r))
    assert (found.matrix.T @ found.matrix - torch.eye(HIDDEN)).abs().max() < 1e-12
    planted, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(5)).double())
    assert (fit_orthogonal(of(m, m @ planted)).matrix - planted).norm() < 1e-8
    generator = torch.Generator().manual_seed(6)
    for _ in range(50):  # small rotations of the optimum are worse
        turn = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64)
        other = found.matrix @ torch.matrix_exp(1e-3 * (turn - turn.T))
        assert loss(m, r, other) > loss(m, r, found.matrix)


def test_orthogonal_with_dead_channels_is_still_orthogonal():
    m, r = rows()
    m[:, :4] = 0
    found = fit_orthogonal(of(m, r))
    assert (found.matrix.T @ found.matrix - torch.eye(HIDDEN)).abs().max() < 1e-12
    assert found.report["rank"] == 5


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize("alpha", [0.0, 1e4])
@pytest.mark.parametrize("rank", [1, 3, HIDDEN])
def test_low_rank_is_the_projection_of_the_full_fit(rank, alpha, towards):
    """Eckart and Young on the fitted values: the brute force is an SVD of the rows."""
    m, r = rows()
    found = fit_low_rank(of(m, r), rank, ridge=alpha, towards=towards)
    start = torch.eye(HIDDEN, dtype=torch.float64) * (towards == "identity")
    wide, target = penalised_rows(m, r, alpha, towards)
    full = torch.linalg.lstsq(wide, target - wide @ start, driver="gelsd").solution
    _, _, right = torch.linalg.svd(wide @ full, full_matrices=False)
    expected = start + full @ right[:rank].T @ right[:rank]
    assert (found.matrix - expected).norm() < 1e-8 * expected.norm()
    values = torch.linalg.svdvals(found.matrix - start)
    assert int((values > 1e-10 * values[0]).sum()) == rank


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize("alpha", [0.0, 1e3])
def test_lower_triangular_is_a_regression_for_each_column(alpha, towards):
    m, r = rows()
    found = fit_lower_triangular(of(m, r), ridge=alpha, towards=towards)
    wide, target = penalised_rows(m, r, alpha, towards)
    expected = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64)
    for j in range(HIDDEN):
        expected[j:, j] = torch.linalg.lstsq(wide[:, j:], target[:, j], driver="gelsd").solution
    assert (found.matrix - expected).norm() < 1e-8 * expected.norm()
    assert torch.equal(found.matrix, found.matrix.tril())


def test_lower_triangular_of_a_singular_gram_and_dead_channels():
    m, r = rows(tokens=5)
    m[:, 2] = 0
    found = fit_lower_triangular(of(m, r))
    assert found.matrix.isfinite().all() and torch.equal(found.matrix, found.matrix.tril())
    assert found.report["jitter"] > 0 and not found.matrix[2].any()


@pytest.mark.parametrize("towards", ["zero", "identity"])
@pytest.mark.parametrize(("l1", "alpha"), [(0.0, 0.0), (0.001, 0.0), (0.05, 0.0), (0.05, 1e4), (0.7, 0.0)])
def test_elastic_net_meets_its_optimality_conditions(l1, alpha, towards):
    """Subgradient conditions on the rows: the gradient is -lambda sign(D) where D is not zero, within lambda else."""
    m, r = rows()
    found = fit_elastic_net(of(m, r), l1, ridge=alpha, towards=towards)
    start = torch.eye(HIDDEN, dtype=torch.float64) * (towards == "identity")
    most = float((m.T @ (r - m @ start)).abs().max())
    change = found.matrix - start
    gradient = m.T @ (m @ found.matrix - r) + alpha * change
    assert found.report["lambda"] == pytest.approx(l1 * most, rel=1e-12)
    inside = change.abs() < 1e-12
    assert (gradient[~inside] + l1 * most * change[~inside].sign()).abs().max() < 1e-7 * most
    if inside.any():
        assert gradient[inside].abs().max() <= l1 * most + 1e-7 * most
    assert found.report["zeros"] == pytest.approx(float(inside.double().mean()), abs=1e-9)
    if l1 == 0:
        expected = fit_least_squares(of(m, r), ridge=alpha).matrix if towards == "zero" else None
        assert expected is None or (found.matrix - expected).norm() < 1e-6 * expected.norm()


def test_elastic_net_of_a_singular_gram_is_finite():
    m, r = rows(tokens=4)
    m[:, 0] = 0
    found = fit_elastic_net(of(m, r), 0.01)
    assert found.matrix.isfinite().all() and found.report["gap"] < 1e-6


def shards_of(count, **given):
    parts = [of(*rows(seed=seed, **given)) for seed in range(count)]
    return Statistics.sum(parts), parts


@ORIGINS
def test_auto_ridge_is_brute_force_cross_validation(towards):
    data = [rows(tokens=12, seed=seed) for seed in range(3)]
    parts = [of(*one) for one in data]
    grid = (1e-3, 1e-1, 1.0, 10.0)
    found = fit_auto_ridge(Statistics.sum(parts), Shards.of(parts), towards, grid)
    for relative, point in zip(grid, found.report["curve"], strict=True):
        errors = []
        for k, (m, r) in enumerate(data):
            others = of(*(torch.cat([one[n] for j, one in enumerate(data) if j != k]) for n in (0, 1)))
            matrix = fit_least_squares(others, ridge_relative=relative, towards=towards).matrix
            errors.append(loss(m, r, matrix))
        energies = [float(r.square().sum()) for _, r in data]
        assert point["ridge_relative"] == relative
        assert point["residual"] == pytest.approx(sum(errors) / sum(energies), rel=1e-8)
        assert point["by_shard"] == pytest.approx([e / n for e, n in zip(errors, energies, strict=True)], rel=1e-8)
    best = min(found.report["curve"], key=lambda point: point["residual"])["ridge_relative"]
    assert found.report["ridge_relative"] == best
    expected = fit_least_squares(Statistics.sum(parts), ridge_relative=best, towards=towards)
    assert torch.equal(found.matrix, expected.matrix)
    json.dumps(found.report, allow_nan=False)


def test_auto_ridge_stays_near_a_weight_that_the_target_is_noise_around():
    parts = []
    for seed in range(4):
        m, noise = rows(tokens=20, seed=seed)
        parts.append(of(m, m @ WEIGHT + noise - noise.mean()))
    found = {
        name: fit_auto_ridge(Statistics.sum(parts), Shards.of(parts), towards).report
        for name, towards in (("zero", "zero"), ("weight", WEIGHT))
    }
    assert found["weight"]["ridge_relative"] >= 1 > 0.1 > found["zero"]["ridge_relative"]


def test_auto_ridge_refuses_what_is_no_partition():
    total, parts = shards_of(3)
    with pytest.raises(ReplaceMeError, match="set `shards` of the calibration to 2 or more"):
        fit_auto_ridge(parts[0], Shards.of(parts[:1]))
    with pytest.raises(ReplaceMeError, match="the shards hold 400 tokens, their sum 600"):
        fit_auto_ridge(total, Shards.of(parts[:2]))


def test_subtracting_a_shard_leaves_the_others():
    total, parts = shards_of(3)
    left, expected = total - parts[1], parts[0] + parts[2]
    assert left.tokens == expected.tokens
    assert (left.gram - expected.gram).norm() < 1e-13 * expected.gram.norm()
    with pytest.raises(ReplaceMeError, match="do not belong together"):
        _ = total - Statistics.zeros(HIDDEN + 1)


@pytest.mark.parametrize("transform", sorted(name for name, one in STRUCTURES.items() if one.fitted))
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 100), st.booleans())
def test_every_fit_is_finite_and_none_beats_the_full_one(transform, tokens, hidden, seed, dead):
    m, r = rows(tokens, hidden, seed)
    if dead:
        m[:, 0] = 0
        m[0] = 0  # a row of zeros
    statistics = of(m, r)
    if not m.any():
        return
    options = dict(OPTIONS.get(transform, {}))
    if transform.endswith("magnitude"):
        options["ratios"] = torch.linspace(0.0, 3.0, hidden, dtype=torch.float64)
    found = fit(statistics, transform, **options)
    assert found.matrix.isfinite().all()
    json.dumps(found.report, allow_nan=False)
    full = fit_least_squares(statistics)
    assert found.report["residual"] >= full.report["residual"] - 1e-6


@pytest.mark.parametrize("smallest", [1.0, 1e-6, 1e-12, 1e-16, 0.0])
def test_the_quick_solve_is_the_careful_one(smallest):
    generator = torch.Generator().manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64))
    values = torch.ones(HIDDEN, dtype=torch.float64)
    values[0] = smallest
    system = turn * values @ turn.T
    right = torch.randn(HIDDEN, 3, generator=generator, dtype=torch.float64)
    careful, report = solve(system, right)
    quick = solve_quickly(system, right)
    assert report["rank"] == HIDDEN - (smallest < 1e-14)
    assert (quick - careful).norm() <= 1e-15 / max(smallest, 1e-3) * careful.norm() or smallest in (1e-6, 1e-12)
    assert (quick - careful).norm() <= 1e-3 * careful.norm()


def test_wrong_options_are_refused():
    statistics = of(*rows())
    for rank in (0, HIDDEN + 1):
        with pytest.raises(ReplaceMeError, match="must lie between 1 and the hidden size 9"):
            fit_low_rank(statistics, rank)
    for l1 in (-0.1, 1.0, float("nan")):
        with pytest.raises(ReplaceMeError, match="l1"):
            fit_elastic_net(statistics, l1)
