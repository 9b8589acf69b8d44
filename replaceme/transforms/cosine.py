"""The cosine objective of eq. 8 of arXiv 2505.02819, `mean(1 - cos(m T, r))`, by reweighted least squares.

With p = m T the gradient vanishes where `sum w m p^T = sum v m r^T`, `w = cos / |p|^2`, `v = 1 / (|p| |r|)`: weighted
normal equations. Each iteration takes one pass over the rows, which gives the loss of T, the weights, and with them the
weighted Gram and cross product that the next T is solved from. It starts from least squares.
How far to go is judged on rows that are held out, from a start that has not seen them either: a step that does not
lower their loss is halved, then given up. The steps that helped are then taken again over all rows. The objective does
not see the length of T, so T is scaled at the end as least squares would scale it.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from replaceme.errors import ReplaceMeError
from replaceme.kernels import Sums, gram_cross, row_cosine
from replaceme.progress import progress
from replaceme.rows import BYTES, Rows
from replaceme.statistics import Statistics
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.solve import Ridge, Towards, normal_equations, reported, solve_quickly
from replaceme.transforms.transform import Transform

LOGGER = logging.getLogger(__name__)
HELD_OUT = 8  # one block of rows in so many is held out
BLOCK_ROWS = 65536
SMALLEST_COSINE = 0.01  # below it a row's weight in the Gram stays that of this cosine: a Gram has no negative weights
SMALLEST_NORM = 1e-15
HALVINGS = 3
Blocks = Callable[[], Iterator[tuple[bool, torch.Tensor, torch.Tensor]]]  # (held out, m, r), afresh for each pass


@dataclass(frozen=True)
class Pass:
    """One pass over the rows with a T: mean cosine distances, and the weighted sums of the rows it may learn from."""

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
    that of least squares for the scaled T: steps (those that helped), cosine_distance of T over all rows,
    cosine_distance_least_squares of the start, and `history` (train, held_out, step) of the T tried, without the
    held-out rows; the first is least squares. Rows whose m T or r is zero do not count. Raises ReplaceMeError for rows
    of another width and for fewer than two.
    """
    if rows.hidden_size != statistics.hidden_size:
        raise ReplaceMeError(
            f"{rows.folder}: rows of {rows.hidden_size} channels, statistics of {statistics.hidden_size}"
        )
    ridge, blocks = Ridge(0.0, ridge_relative, towards), _blocks(rows, device)
    history = _judged(blocks, ridge, iterations, tolerance, rows.hidden_size, device)
    steps = [point["step"] for point in history if point["helped"]]
    start = fit_least_squares(statistics, ridge_relative=ridge_relative, towards=towards)
    matrix = start.matrix.to(device)
    losses = []
    for step in progress([*steps, None], "cosine, all rows", unit="pass"):
        outcome = _pass(blocks, matrix, every=True)
        losses.append(outcome.train)
        if step is not None:
            matrix += step * (_solved(outcome.sums, ridge) - matrix)
    report = {"solver": "irls", "ridge": start.report["ridge"], "steps": steps, "history": history}
    report |= {"cosine_distance": losses[-1], "cosine_distance_least_squares": losses[0]}
    return reported(statistics, _scaled(statistics, matrix.cpu()), report)


def _judged(
    blocks: Blocks, ridge: Ridge, iterations: int, tolerance: float, hidden: int, device: str | torch.device
) -> list[dict[str, Any]]:
    """Reweighted steps from least squares without the held-out rows: what each T gives, and whether its step helped."""
    best = _solved(_plain(blocks, hidden, device), ridge)
    found = _pass(blocks, best)
    history = [_point(found, 0.0, helped=False)]
    direction, step = _solved(found.sums, ridge) - best, 1.0
    for _ in progress(range(iterations), "cosine, held-out rows", unit="iteration"):
        tried = best + step * direction
        outcome = _pass(blocks, tried)
        gain = found.held_out - outcome.held_out
        history.append(_point(outcome, step, helped=gain > 0))
        LOGGER.info("cosine: %s", history[-1])
        if gain > 0:
            best, found = tried, outcome
            if gain < tolerance * found.held_out:
                break
            direction = _solved(found.sums, ridge) - best
        elif step <= 0.5**HALVINGS:
            break
        else:
            step /= 2
    return history


def _point(outcome: Pass, step: float, helped: bool) -> dict[str, Any]:
    return {"train": outcome.train, "held_out": outcome.held_out, "step": step, "helped": helped}


def _plain(blocks: Blocks, hidden: int, device: str | torch.device) -> Statistics:
    """Unweighted sums of the rows that are not held out."""
    sums = Statistics.zeros(hidden, device)
    for held_out, m, r in blocks():
        if not held_out:
            sums.add_batch(m.to(device), r.to(device))
    return sums


def _pass(blocks: Blocks, matrix: torch.Tensor, every: bool = False) -> Pass:
    """Loss of T, and the sums reweighted by it, on T's device; `every`: no row is held out."""
    device, narrow = matrix.device, matrix.float()
    out = Sums.zeros(*matrix.shape, device)
    losses, counts, weight, used = [0.0, 0.0], [0, 0], 0.0, 0
    for kept_back, m, r in blocks():
        held_out = kept_back and not every
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
    if not counts[0] or not (counts[1] or every):
        raise ReplaceMeError(
            f"{sum(counts)} rows with a direction; a cosine fit needs rows to fit and rows to hold out"
        )
    total = torch.tensor(weight, dtype=torch.float64, device=device)
    sums = Statistics(out.gram, out.cross, out.energy, out.sum_x, out.sum_r, used, total)
    return Pass(losses[0] / counts[0], losses[1] / max(counts[1], 1), sums)


def _blocks(rows: Rows, device: str | torch.device) -> Blocks:
    """The blocks of rows, each held out or not; kept on a GPU where they take less than half of what is free."""
    size = max(1, min(BLOCK_ROWS, rows.count // (2 * HELD_OUT)))

    def read() -> Iterator[tuple[bool, torch.Tensor, torch.Tensor]]:
        for number, (m, r) in enumerate(rows.blocks(size)):
            yield number % HELD_OUT == HELD_OUT - 1, m, r

    needed = rows.count * rows.hidden_size * BYTES
    if torch.device(device).type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2:
        kept = [(held_out, m.to(device), r.to(device)) for held_out, m, r in read()]
        return lambda: iter(kept)
    return read


def _solved(sums: Statistics, ridge: Ridge) -> torch.Tensor:
    equations = normal_equations(sums, ridge)
    return equations.transform(solve_quickly(equations.system, equations.right))


def _scaled(statistics: Statistics, matrix: torch.Tensor) -> torch.Tensor:
    """T times the factor that least squares gives it, `tr(T^T C) / tr(T^T G T)`."""
    fitted = float((matrix * (statistics.gram @ matrix)).sum())
    return matrix * (float((matrix * statistics.cross).sum()) / fitted) if fitted > 0 else matrix
