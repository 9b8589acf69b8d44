"""The cosine objective of eq. 8 of arXiv 2505.02819, `mean(1 - cos(m T, r))`, by reweighted least squares.

With p = m T the gradient vanishes where `sum w m p^T = sum v m r^T`, `w = cos / |p|^2`, `v = 1 / (|p| |r|)`: weighted
normal equations. Each iteration takes one pass over the rows, which gives the loss of T, the weights, and with them the
weighted Gram and cross product that the next T is solved from. It starts from least squares, and rows that are held out
judge it: a step that does not lower their loss is halved, and the best T is returned. The objective does not see the
length of T, so T is scaled at the end as least squares would scale it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from replaceme.errors import ReplaceMeError
from replaceme.kernels import Sums, gram_cross, row_cosine
from replaceme.progress import progress
from replaceme.rows import Rows
from replaceme.statistics import Statistics
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.solve import Ridge, Towards, normal_equations, reported, solve
from replaceme.transforms.transform import Transform

LOGGER = logging.getLogger(__name__)
HELD_OUT = 8  # one block of rows in so many is held out
BLOCK_ROWS = 65536
SMALLEST_COSINE = 0.01  # below it a row's weight in the Gram stays that of this cosine: a Gram has no negative weights
SMALLEST_NORM = 1e-15
HALVINGS = 3


@dataclass(frozen=True)
class Pass:
    """One pass over the rows with a T: mean cosine distances, and the weighted sums over the rows not held out."""

    train: float
    held_out: float
    sums: Statistics


def fit_cosine(
    statistics: Statistics,
    rows: Rows,
    iterations: int = 10,
    tolerance: float = 1e-4,
    ridge_relative: float = 0.0,
    towards: Towards = "zero",
    device: str | torch.device = "cpu",
) -> Transform:
    """T float64 [hidden, hidden] that minimises `mean(1 - cos(m T, r))` over the rows (eq. 8).

    The ridge is that of least squares, for the start and for every reweighted solve. Stops after `iterations`, when the
    held-out loss falls by less than `tolerance` of itself, or when halving a step does not help. The report, beside
    that of least squares for the scaled T: iterations, cosine_distance and cosine_distance_held_out, and `history`,
    both of them for every T tried, the first of least squares. Rows whose m T or r is zero do not count. Raises
    ReplaceMeError for rows of another width and for fewer than two.
    """
    if rows.hidden_size != statistics.hidden_size:
        raise ReplaceMeError(
            f"{rows.folder}: rows of {rows.hidden_size} channels, statistics of {statistics.hidden_size}"
        )
    ridge = Ridge(0.0, ridge_relative, towards)
    start = fit_least_squares(statistics, ridge_relative=ridge_relative, towards=towards)
    best, found = start.matrix, _pass(rows, start.matrix, device)
    history = [_point(found, 1.0)]
    direction, step = _solved(found.sums, ridge) - best, 1.0
    for _ in progress(range(iterations), "cosine", unit="iteration"):
        tried = best + step * direction
        outcome = _pass(rows, tried, device)
        history.append(_point(outcome, step))
        LOGGER.info("cosine: %s", history[-1])
        if outcome.held_out < found.held_out:
            gain = found.held_out - outcome.held_out
            best, found = tried, outcome
            if gain < tolerance * found.held_out:
                break
            direction = _solved(found.sums, ridge) - best
        elif step <= 0.5**HALVINGS:
            break
        else:
            step /= 2
    report = {"solver": "irls", "ridge": start.report["ridge"], "iterations": len(history) - 1, "history": history}
    report |= {"cosine_distance": found.train, "cosine_distance_held_out": found.held_out}
    return reported(statistics, _scaled(statistics, best), report)


def _point(outcome: Pass, step: float) -> dict[str, Any]:
    return {"train": outcome.train, "held_out": outcome.held_out, "step": step}


def _pass(rows: Rows, matrix: torch.Tensor, device: str | torch.device) -> Pass:
    """Loss of T over all rows, and the sums reweighted by it."""
    narrow = matrix.float().to(device)
    out = Sums.zeros(*matrix.shape, device)
    losses, counts, weight, used = [0.0, 0.0], [0, 0], 0.0, 0
    for held_out, m, r in _split(rows):
        m, r = m.to(device), r.to(device)
        dot, norm_p, norm_r = row_cosine(m, narrow, (r,))
        counted = (norm_p > SMALLEST_NORM) & (norm_r > SMALLEST_NORM)
        dot, norm_p, norm_r = (values[counted].double() for values in (dot, norm_p, norm_r))
        cosine = (dot / (norm_p * norm_r)).clamp(-1, 1)
        losses[held_out] += float((1 - cosine).sum())
        counts[held_out] += len(cosine)
        if not held_out:
            weights, cross_weights = (torch.zeros(len(m), dtype=torch.float64, device=m.device) for _ in range(2))
            weights[counted] = cosine.clamp(min=SMALLEST_COSINE) / norm_p**2
            cross_weights[counted] = 1 / (norm_p * norm_r)
            gram_cross(m, (r,), weights, cross_weights, counted, out)
            weight += float(weights.sum())
            used += len(cosine)
    if not all(counts):
        raise ReplaceMeError(f"{rows.folder}: {rows.count} rows; a cosine fit needs rows to fit and rows to hold out")
    total = torch.tensor(weight, dtype=torch.float64)
    sums = (tensor.cpu() for tensor in (out.gram, out.cross, out.energy, out.sum_x, out.sum_r))
    return Pass(losses[0] / counts[0], losses[1] / counts[1], Statistics(*sums, used, total))


def _split(rows: Rows) -> Iterator[tuple[bool, torch.Tensor, torch.Tensor]]:
    """(held out or not, m, r) block by block; blocks are small enough that some are held out."""
    size = max(1, min(BLOCK_ROWS, rows.count // (2 * HELD_OUT)))
    for number, (m, r) in enumerate(rows.blocks(size)):
        yield number % HELD_OUT == HELD_OUT - 1, m, r


def _solved(sums: Statistics, ridge: Ridge) -> torch.Tensor:
    equations = normal_equations(sums, ridge)
    return equations.transform(solve(equations.system, equations.right)[0])


def _scaled(statistics: Statistics, matrix: torch.Tensor) -> torch.Tensor:
    """T times the factor that least squares gives it, `tr(T^T C) / tr(T^T G T)`."""
    fitted = float((matrix * (statistics.gram @ matrix)).sum())
    return matrix * (float((matrix * statistics.cross).sum()) / fitted) if fitted > 0 else matrix
