"""The cosine fit against brute force: its gradient, a planted optimum, torch's own optimiser on the same loss."""

import json

import pytest
import torch

from replaceme.activations.rows import INDEX, Rows, store
from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import write_json
from replaceme.transforms import cosine, streams
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.given_rows import GivenRows
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State

HIDDEN = 12


def fit_cosine(statistics, rows, iterations=None, tolerance=1e-4, exact=False, device="cpu", state=None):
    given = GivenRows(statistics, rows, device, state or State())
    objective = Objective("cosine_exact" if exact else "cosine")
    return cosine.fit_cosine(given, objective, iterations, tolerance=tolerance)


def stored(folder, m, r, y=None, parts=3):
    """Rows on disk as `write_rows` leaves them, the statistics of what is stored, and that itself in float64."""
    tensors = [tensor.to(torch.bfloat16) for tensor in (m, r, y) if tensor is not None]
    rows = store(folder, zip(*(tensor.chunk(parts) for tensor in tensors), strict=True))
    statistics = Statistics.zeros(m.shape[1])
    statistics.add_batch(*tensors[:2])
    assert Rows.open(folder) == rows
    return rows, statistics, *(tensor.double() for tensor in tensors)


def data(tokens=3000, seed=0, noise=0.5):
    """Rows of very different lengths, the target a linear map of m with noise relative to each row's own length."""
    generator = torch.Generator().manual_seed(seed)
    m, e, mixing = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, HIDDEN), (tokens, HIDDEN), (HIDDEN, HIDDEN))
    )
    lengths = torch.exp(1.5 * torch.randn(tokens, 1, generator=generator, dtype=torch.float64))
    return lengths * m, lengths * (m @ mixing + noise * e * (1 + 3 * (torch.arange(tokens) % 7 == 0))[:, None])


def loss(m, r, matrix):
    return 1 - torch.nn.functional.cosine_similarity(m @ matrix, r, dim=1).mean()


def test_the_weighted_sums_are_the_gradient(tmp_path):
    """G_w T - C_v of a pass is the gradient of the sum of cosine distances, by autograd in float64."""
    rows, statistics, m, r = stored(tmp_path / "rows", *data(noise=0.1))
    matrix = fit_least_squares(statistics).matrix
    found = cosine._pass(cosine.row_blocks(rows, "cpu"), matrix)
    size = rows.count // (2 * streams.HELD_OUT)
    blocks = [(outputs, targets) for outputs, targets in rows.blocks(size)]
    train = [both for n, both in enumerate(blocks) if n % streams.HELD_OUT != streams.HELD_OUT - 1]
    m, r = (torch.cat(given).double() for given in zip(*train, strict=True))
    at = matrix.clone().requires_grad_()
    total = loss(m, r, at) * len(m)
    total.backward()
    assert found.sums.tokens == len(m)
    assert found.train == pytest.approx(float(loss(m, r, matrix)), rel=1e-6)
    gradient = found.sums.gram @ matrix - found.sums.cross
    assert torch.nn.functional.cosine_similarity(m @ matrix, r, dim=1).min() > cosine.SMALLEST_COSINE
    assert (gradient - at.grad).norm() < 1e-5 * found.sums.cross.norm()


def exact_data(tokens=3000):
    """Rows as in `data`, the target noisy, and a residual stream of about its length."""
    m, r = data(tokens, noise=0.3)
    y = torch.randn(*r.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return m, r, r.norm(dim=1, keepdim=True) * y / HIDDEN**0.5


def exact_loss(m, r, y, matrix):
    return 1 - torch.nn.functional.cosine_similarity(m @ matrix + y, r + y, dim=1).mean()


def test_the_weighted_sums_are_the_exact_gradient(tmp_path):
    """Gradient of eq. 7 from the sums of a pass: by autograd, and by differences in float64."""
    rows, statistics, m, r, y = stored(tmp_path / "rows", *exact_data())
    matrix = fit_least_squares(statistics).matrix
    found = cosine._pass(cosine.row_blocks(rows, "cpu", state=True), matrix, every=True)
    gradient = found.sums.gram @ matrix - found.sums.cross
    at = matrix.clone().requires_grad_()
    (exact_loss(m, r, y, at) * len(m)).backward()
    assert torch.nn.functional.cosine_similarity(m @ matrix + y, r + y, dim=1).min() > cosine.SMALLEST_COSINE
    assert (gradient - at.grad).norm() < 1e-5 * found.sums.cross.norm()
    along = torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    step = 1e-5
    ends = [exact_loss(m, r, y, matrix + sign * step * along) for sign in (1, -1)]
    slope = float(ends[0] - ends[1]) * len(m) / (2 * step)
    assert slope == pytest.approx(float((gradient * along).sum()), rel=1e-3)


def test_the_exact_fit_reaches_the_optimum(tmp_path):
    rows, statistics, m, r, y = stored(tmp_path / "rows", *exact_data())
    found = fit_cosine(statistics, rows, iterations=30, tolerance=0.0, exact=True)
    at = found.matrix.clone().requires_grad_()
    loss_there = exact_loss(m, r, y, at)
    loss_there.backward()
    assert at.grad.norm() < 1e-3 * loss_there, "no gradient is left, so the scale too is right"
    assert found.report["cosine_distance"] == pytest.approx(float(loss_there.detach()), rel=1e-5)
    assert found.report["cosine_distance"] < 0.99 * found.report["cosine_distance_least_squares"]
    approximate = fit_cosine(statistics, rows, iterations=30, tolerance=0.0)
    assert float(loss_there.detach()) < float(exact_loss(m, r, y, approximate.matrix))


def test_a_planted_map_is_recovered_by_the_exact_fit(tmp_path):
    """Its scale comes from the residual stream: nothing is rescaled at the end."""
    m, _, y = exact_data()
    planted = 2.5 * torch.eye(HIDDEN, dtype=torch.float64) + 0.3
    rows, statistics, *_ = stored(tmp_path / "rows", m, m @ planted, y)
    found = fit_cosine(statistics, rows, exact=True)
    assert (found.matrix - planted).norm() < 1e-2 * planted.norm()


@pytest.mark.parametrize("exact", [False, True], ids=["eq8", "eq7"])
@pytest.mark.parametrize("saves", [1, 2, 99])
def test_an_interrupted_fit_goes_on_to_the_same_bits(kills_after, tmp_path, exact, saves):
    rows, statistics, *_ = stored(tmp_path / "rows", *exact_data(640))
    whole = fit_cosine(statistics, rows, 4, 0.0, exact=exact)
    path, count = tmp_path / "state", len(whole.report["history"]) - 1 + len(whole.report["steps"])
    with pytest.raises(kills_after.error):
        fit_cosine(statistics, rows, 4, 0.0, exact=exact, state=kills_after(path, "a", min(saves, count)))
    again = State(path, "a", 0.0)
    assert again.read() is not None
    found = fit_cosine(statistics, rows, 4, 0.0, exact=exact, state=again)
    assert torch.equal(found.matrix, whole.matrix) and found.report == whole.report
    again.remove()
    assert not path.exists()


def test_the_state_of_another_fit_is_ignored(tmp_path, caplog):
    caplog.set_level("INFO")
    path = tmp_path / "state"
    State(path, {"rows": 1, "widths": (2, 3)}, 0.0).write(lambda: ({"a": torch.ones(2)}, {"b": 0.1}))
    assert State(path, {"rows": 2}).read() is None and "state of another fit, ignored" in caplog.text
    tensors, record = State(path, {"rows": 1, "widths": (2, 3)}).read()
    assert tensors["a"].tolist() == [1, 1] and record == {"b": 0.1}
    path.write_bytes(b"half a fi")
    assert State(path, {"rows": 1}).read() is None and "not a usable state" in caplog.text


def test_it_reaches_what_a_long_run_of_an_optimiser_reaches(tmp_path):
    rows, statistics, m, r = stored(tmp_path / "rows", *data())
    found = fit_cosine(statistics, rows, iterations=20, tolerance=0.0)
    at = fit_least_squares(statistics).matrix.requires_grad_()
    optimiser = torch.optim.LBFGS([at], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        value = loss(m, r, at)
        value.backward()
        return value

    optimiser.step(closure)
    best, start = (float(loss(m, r, of)) for of in (at.detach(), fit_least_squares(statistics).matrix))
    assert start - best > 1e-4, "there is something to gain"
    assert float(loss(m, r, found.matrix)) < best + 0.1 * (start - best)
    report, history = found.report, found.report["history"]
    assert report["cosine_distance"] == pytest.approx(float(loss(m, r, found.matrix)), rel=1e-6)
    assert report["cosine_distance_least_squares"] == pytest.approx(start, rel=1e-6)
    assert report["steps"] == [point["step"] for point in history if point["helped"]] != []
    assert not history[0]["helped"] and len(history) <= 21
    falling = [history[0]["held_out"], *(point["held_out"] for point in history if point["helped"])]
    assert falling == sorted(falling, reverse=True)
    json.dumps(report, allow_nan=False)


def test_no_step_is_taken_where_none_helps_the_held_out_rows(tmp_path):
    """More channels than the rows can carry: every step would follow noise, and what is left is least squares."""
    generator = torch.Generator().manual_seed(1)
    m, r = (torch.randn(80, 60, generator=generator, dtype=torch.float64) for _ in range(2))
    rows, statistics, _, _ = stored(tmp_path / "rows", m, r, parts=1)
    found = fit_cosine(statistics, rows, iterations=6)
    helped = [point["held_out"] for point in found.report["history"] if point["helped"]]
    assert all(value < found.report["history"][0]["held_out"] for value in helped)
    if not found.report["steps"]:
        expected = cosine.scaled(statistics, fit_least_squares(statistics).matrix)
        assert torch.equal(found.matrix, expected)


def test_the_start_has_not_seen_the_held_out_rows(tmp_path):
    rows, _, _, _ = stored(tmp_path / "rows", *data(tokens=640))
    blocks = cosine.row_blocks(rows, "cpu")
    seen = cosine._plain(blocks, (HIDDEN, HIDDEN), "cpu")
    assert seen.tokens == sum(len(block.m) for block in blocks() if not block.held_out) < 640


def test_the_scale_is_that_of_least_squares(tmp_path):
    rows, statistics, _, _ = stored(tmp_path / "rows", *data())
    found = fit_cosine(statistics, rows)
    for factor in (0.98, 1.02):
        other = factor * found.matrix
        worse = float((other * (statistics.gram @ other - 2 * statistics.cross)).sum())
        assert worse > float((found.matrix * (statistics.gram @ found.matrix - 2 * statistics.cross)).sum())


def test_zero_rows_and_dead_channels_do_no_harm(tmp_path):
    m, r = data(tokens=400)
    m[:, 3] = 0
    m[::5] = 0
    r[::7] = 0
    rows, statistics, _, _ = stored(tmp_path / "rows", m, r)
    found = fit_cosine(statistics, rows, iterations=3)
    assert found.matrix.isfinite().all() and not found.matrix[3].any()
    assert 0 < found.report["cosine_distance"] < 1


def test_same_rows_same_bits_whatever_the_parts_hold(tmp_path):
    m, r = data(tokens=640)
    one, statistics, _, _ = stored(tmp_path / "one", m, r, parts=4)
    assert torch.equal(fit_cosine(statistics, one).matrix, fit_cosine(statistics, one).matrix)


def test_unusable_rows_are_refused(tmp_path):
    rows, statistics, _, _ = stored(tmp_path / "rows", *data(tokens=60))
    with pytest.raises(ReplaceMeError, match="rows of 12 channels, statistics of 5"):
        fit_cosine(Statistics.zeros(5), rows)
    few, of_few, _, _ = stored(tmp_path / "few", *data(tokens=4), parts=1)
    with pytest.raises(ReplaceMeError, match="needs rows to fit and rows to hold out"):
        fit_cosine(of_few, few)
    (tmp_path / "rows" / "rows-00001.safetensors").unlink()
    with pytest.raises(ReplaceMeError, match=r"rows-00001\.safetensors: missing"):
        Rows.open(tmp_path / "rows")
    write_json(tmp_path / "rows" / INDEX, [])
    with pytest.raises(ReplaceMeError, match="not the index of rows"):
        Rows.open(tmp_path / "rows")
    assert statistics.tokens == 60


@pytest.mark.gpu
def test_a_gpu_finds_the_same(tmp_path):
    rows, statistics, m, r = stored(tmp_path / "rows", *data(tokens=20000))
    found, expected = (fit_cosine(statistics, rows, iterations=5, device=device) for device in ("cuda", "cpu"))
    for one, other in zip(found.report["history"], expected.report["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-4), "losses, steps and choices"
    assert (found.matrix - expected.matrix).norm() < 1e-3 * expected.matrix.norm()
    assert float(loss(m, r, found.matrix)) == pytest.approx(float(loss(m, r, expected.matrix)), rel=1e-5)
