"""The gradient solvers against brute force, closed forms, scipy and each other, and after an interruption."""

import json
from functools import cache, partial

import pytest
import scipy.optimize
import torch

from replaceme.activations.rows import store
from replaceme.activations.statistics import Statistics
from replaceme.config.solvers import AdamOptions
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.adam import _order, fit_adam
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.cosine import fit_cosine
from replaceme.transforms.full_batch import Problem, fit_lbfgs, fit_nlcg, fit_trust_ncg
from replaceme.transforms.given_rows import GivenRows
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.streams import row_blocks

HIDDEN = 6
NAMES = ("l2", "cosine", "cosine_exact")
FULL_BATCH = {"lbfgs": fit_lbfgs, "nlcg": fit_nlcg, "trust_ncg": fit_trust_ncg}


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    """Stored rows of very different lengths and channels, their statistics, and (m, r, y) in float64."""
    generator = torch.Generator().manual_seed(0)
    m, e, y = (torch.randn(700, HIDDEN, generator=generator, dtype=torch.float64) for _ in range(3))
    lengths = torch.exp(torch.randn(700, 1, generator=generator, dtype=torch.float64))
    mixing = torch.eye(HIDDEN) + 0.3 * torch.randn(HIDDEN, HIDDEN, generator=generator)
    scales = torch.logspace(-2, 1, HIDDEN, dtype=torch.float64)
    given = [lengths * m * scales, lengths * (m @ mixing.double() + 0.4 * e), 2 * lengths * y]
    m, r, y = (tensor.to(torch.bfloat16) for tensor in given)
    parts = zip(m.split(300), r.split(300), y.split(300), strict=True)
    rows = store(tmp_path_factory.mktemp("rows") / "rows", parts)
    statistics = Statistics.zeros(HIDDEN)
    statistics.add_batch(m, r)
    return rows, statistics, (m.double(), r.double(), y.double())


def fit_gradient(statistics, rows, objective, solver="adam", device="cpu", state=None, **options):
    function = {"adam": fit_adam, **FULL_BATCH}[solver]
    return function(GivenRows(statistics, rows, device, state or State()), objective, **options)


@pytest.fixture(scope="module")
def optimum(problem):
    """A function that gives the best matrix by the solvers of another kind."""
    rows, statistics, _ = problem

    @cache
    def solve(name):
        if name == "l2":
            return fit_least_squares(statistics).matrix
        return fit_cosine(GivenRows(statistics, rows), Objective(name), 40, tolerance=0.0).matrix

    return solve


@pytest.fixture(scope="module")
def penalised(problem):
    """(value and gradient of a flat matrix, scipy's best value) of the exact cosine with an l2 penalty."""
    _, _, given = problem

    def value(flat):
        matrix = torch.tensor(flat).view(HIDDEN, HIDDEN).requires_grad_()
        total = brute("cosine_exact", *given, matrix) + 0.003 * matrix.square().sum()
        total.backward()
        return float(total.detach()), matrix.grad.flatten().numpy()

    start = torch.eye(HIDDEN).double().flatten().numpy()
    return value, scipy.optimize.minimize(value, start, jac=True, tol=1e-12).fun


def brute(name, m, r, y, matrix):
    if name == "l2":
        return (m @ matrix - r).square().mean()
    pair = (m @ matrix, r) if name == "cosine" else (m @ matrix + y, r + y)
    return 1 - torch.nn.functional.cosine_similarity(*pair, dim=1).mean()


@pytest.mark.parametrize("name", NAMES)
def test_value_gradient_and_curvature_of_a_stream(problem, name):
    rows, _, given = problem
    blocks, objective = row_blocks(rows, "cpu", name == "cosine_exact", size=99), Objective(name, l1=0.01, l2=0.02)
    assert sum(1 for _ in blocks()) > 7
    generator = torch.Generator().manual_seed(1)
    at, along = (torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64) for _ in range(2))

    def whole(matrix):
        return brute(name, *given, matrix) + 0.01 * matrix.abs().sum() + 0.02 * matrix.square().sum()

    value, gradient = objective.value_and_gradient(blocks, at)
    leaf = at.clone().requires_grad_()
    expected = torch.autograd.grad(whole(leaf), leaf)[0]
    assert float(value) == pytest.approx(float(whole(at)), rel=1e-12)
    assert (gradient - expected).norm() < 1e-10 * expected.norm()
    assert objective.mean(blocks, at) == pytest.approx(float(brute(name, *given, at)), rel=1e-12)
    _, product = torch.autograd.functional.hvp(whole, at, along)
    assert (objective.curvature(blocks, at, along) - product).norm() < 1e-10 * product.norm()


def test_a_row_without_direction_does_not_count(tmp_path):
    m = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]).bfloat16()
    rows = store(tmp_path / "rows", [(m, torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]).bfloat16())])
    blocks, matrix = row_blocks(rows, "cpu"), torch.eye(2, dtype=torch.float64)
    value, gradient = Objective("cosine").value_and_gradient(blocks, matrix)
    assert float(value) == 1.0 and gradient.isfinite().all()
    assert Objective("cosine").curvature(blocks, matrix, matrix).isfinite().all()
    zero = store(tmp_path / "zero", [(torch.zeros(20, 2).bfloat16(), torch.ones(20, 2).bfloat16())])
    with pytest.raises(ReplaceMeError, match="no row has a direction"):
        Objective("cosine").mean(row_blocks(zero, "cpu"), matrix)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", FULL_BATCH)
def test_full_batch_solvers_reach_the_optimum(problem, optimum, name, solver):
    """Where least squares or the reweighting end; eq. 8 with the length that least squares gives."""
    rows, statistics, given = problem
    found = fit_gradient(statistics, rows, Objective(name), solver)
    report, expected = found.report, optimum(name)
    if name != "l2":
        assert report["cosine_distance"] < report["cosine_distance_least_squares"]
    least = float(brute(name, *given, expected))
    assert float(brute(name, *given, found.matrix)) < least * (1 + 1e-5)
    assert report["history"] == sorted(report["history"], reverse=True) and len(report["history"]) < 60
    assert (found.matrix - expected).norm() < 0.02 * expected.norm()
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("solver", FULL_BATCH)
def test_the_l2_penalty_is_that_of_scipy(problem, optimum, penalised, solver):
    rows, statistics, _ = problem
    found = fit_gradient(statistics, rows, Objective("cosine_exact", l2=0.003), solver).matrix
    value, best = penalised
    assert value(found.flatten().numpy())[0] < best * (1 + 1e-6)
    assert found.norm() < 0.9 * optimum("cosine_exact").norm()


def test_adam_with_mse_is_least_squares(problem):
    """The paper's check of its closed form, where it is easy: no badly scaled channel."""
    rows, statistics, given = problem
    options = {"learning_rate": 0.02, "batch_tokens": 700, "epochs": 600}
    whitened = given[0] / statistics.gram.diagonal().sqrt() * 26
    easy = store(rows.folder.parent / "easy", [(whitened.bfloat16(), given[1].bfloat16())])
    sums = Statistics.zeros(HIDDEN)
    sums.add_batch(whitened.bfloat16(), given[1].bfloat16())
    found, expected = fit_gradient(sums, easy, Objective("l2"), **options), fit_least_squares(sums).matrix
    assert (found.matrix - expected).norm() < 1e-3 * expected.norm()
    assert found.report["mean_squared_error"] == pytest.approx(found.report["mean_squared_error_least_squares"])


@pytest.mark.parametrize("name", NAMES)
def test_adam_is_torchs_own_over_the_rows(problem, name):
    """One batch an epoch, so that only the sums' order differs from Adam on whole tensors from the identity."""
    rows, statistics, given = problem
    options = {"learning_rate": 0.01, "batch_tokens": 700, "epochs": 20}
    found = fit_gradient(statistics, rows, Objective(name, l1=1e-3), **options)
    matrix = torch.eye(HIDDEN, requires_grad=True)
    optimiser = torch.optim.Adam([matrix], lr=0.01)
    for _ in range(20):
        optimiser.zero_grad()
        (brute(name, *(tensor.float() for tensor in given), matrix) + 1e-3 * matrix.abs().sum()).backward()
        optimiser.step()
    assert (found.matrix - matrix.detach().double()).norm() < 1e-4 * (matrix.detach() - torch.eye(HIDDEN)).norm()
    assert len(found.report["history"]) == 20 and found.report["history"][-1] < found.report["history"][0]


def test_the_l1_penalty_meets_the_subgradient_conditions(problem):
    """|gradient| = l1 where T_ij is not 0, and at most that where it is, up to the length of Adam's last steps."""
    rows, statistics, given = problem
    options = {"learning_rate": 6e-3, "batch_tokens": 700, "epochs": 700}
    found = fit_gradient(statistics, rows, Objective("cosine_exact", l1=0.01), **options).matrix
    leaf = found.clone().requires_grad_()
    gradient = torch.autograd.grad(brute("cosine_exact", *given, leaf), leaf)[0]
    small = found.abs() < 0.01
    assert 0 < int(small.sum()) < HIDDEN**2
    assert (gradient + 0.01 * found.sign())[~small].abs().max() < 1.5e-3
    assert gradient[small].abs().max() < 0.0115


def test_an_epoch_leaves_out_other_tokens_each_time():
    options = AdamOptions(mask_ratio=0.25)
    first, second = (_order(1000, options, epoch) for epoch in range(2))
    assert len(first) == len(set(first.tolist())) == 750 and set(first.tolist()) != set(second.tolist())
    assert torch.equal(first, _order(1000, options, 0)) and not torch.equal(
        first, _order(1000, AdamOptions(order_seed=1), 0)[:750]
    )
    assert (
        sorted(_order(10, AdamOptions(), 3).tolist()) == list(range(10))
        and len(_order(3, AdamOptions(mask_ratio=0.99), 0)) == 1
    )


@pytest.fixture(scope="module")
def uninterrupted(problem):
    """A function that gives the arguments of a fit by a solver, and what they give."""
    rows, statistics, _ = problem

    @cache
    def fit(solver):
        of_adam = {"learning_rate": 1e-2, "batch_tokens": 100, "epochs": 3, "mask_ratio": 0.2, "order_seed": 3}
        options = of_adam if solver == "adam" else {"iterations": 12}
        given = partial(fit_gradient, statistics, rows, Objective("cosine_exact", l2=1e-3), solver, **options)
        return given, given()

    return fit


@pytest.mark.parametrize(("solver", "saves"), [("adam", 1), ("adam", 9), ("adam", 8), ("lbfgs", 1), ("lbfgs", 5),
                                               ("nlcg", 1), ("nlcg", 2), ("trust_ncg", 1)])  # fmt: skip
def test_an_interrupted_fit_goes_on_to_the_same_bits(kills_after, uninterrupted, tmp_path, solver, saves, monkeypatch):
    """Which the same rows never do by chance: it is also the test that two fits give the same bits."""
    monkeypatch.setattr("replaceme.transforms.full_batch.ROUND", {"cg": 3, "trust-ncg": 2})
    given, whole = uninterrupted(solver)
    with pytest.raises(kills_after.error):
        given(state=kills_after(tmp_path / "state", "this fit", saves))
    again = State(tmp_path / "state", "this fit")
    assert again.read() is not None
    found = given(state=again)
    assert torch.equal(found.matrix, whole.matrix) and found.report == whole.report


def test_maps_between_two_widths(tmp_path):
    generator = torch.Generator().manual_seed(0)
    m, r = (torch.randn(200, width, generator=generator).bfloat16() for width in (5, 3))
    blocks = row_blocks(store(tmp_path / "rows", [(m, r)]), "cpu")
    task = Problem(Objective("l2"), blocks, (5, 3), "cpu")
    assert torch.allclose(task.matrix(task.start()), torch.eye(5, 3, dtype=torch.float64))
    value, gradient = task.evaluate(task.start())
    assert value > 0 and gradient.shape == (15,)


def test_bad_input_is_one_line(problem, tmp_path):
    rows, statistics, _ = problem
    with pytest.raises(ReplaceMeError, match="rows of 6 channels, statistics of 5"):
        fit_gradient(Statistics.zeros(5), rows, Objective("l2"))
    plain = store(tmp_path / "rows", [(torch.ones(20, HIDDEN).bfloat16(), torch.ones(20, HIDDEN).bfloat16())])
    with pytest.raises(ReplaceMeError, match="rows without the residual stream"):
        fit_gradient(statistics, plain, Objective("cosine_exact"))
    with pytest.raises(ReplaceMeError, match=r"loss of epoch 2 is .*; lower `learning_rate`"):
        fit_gradient(statistics, rows, Objective("l2"), learning_rate=1e30)


@pytest.mark.gpu
@pytest.mark.parametrize("solver", ["adam", *FULL_BATCH])
def test_a_gpu_finds_the_same(problem, solver):
    rows, statistics, _ = problem
    found, expected = (
        fit_gradient(statistics, rows, Objective("cosine_exact"), solver, device=device) for device in ("cuda", "cpu")
    )
    assert found.report["cosine_distance"] == pytest.approx(expected.report["cosine_distance"], rel=1e-5)
