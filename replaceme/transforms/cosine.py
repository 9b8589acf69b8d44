"""The cosine objectives of arXiv 2505.02819 by reweighted least squares: eq. 8, and the exact one, eq. 7.

Both are `mean(1 - cos(p, l))`: eq. 8 has p = m T, l = r; eq. 7 has p = m T + y, l = r + y, with the residual stream y.
The gradient of the sum is `sum w m p^T - sum v m l^T`, `w = cos / |p|^2`, `v = 1 / (|p| |l|)`, and vanishes where

    (sum w m m^T) T = sum m (v l - w y)^T                                     (y = 0 for eq. 8)

weighted normal equations. Each iteration takes one pass over the rows, which gives the loss of T, the weights, and with
them the weighted Gram and cross product that the next T is solved from. It starts from least squares.
How far to go is judged on rows that are held out, from a start that has not seen them either: a step that does not
lower their loss is halved, then given up. The steps that helped are then taken again over all rows. Eq. 8 does not see
the length of T, so there T is scaled at the end as least squares would scale it; in eq. 7 y sets the scale.
The authors minimise both by Adam (`adam.py`); the reweighting, the held-out rows and the scale are ours.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.kernels.gram import Sums, gram_cross
from replaceme.kernels.row_cosine import row_cosine
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.given_rows import GivenRows, scaled
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.solve import Ridge, Towards, normal_equations, reported, solve_quickly
from replaceme.transforms.streams import Block, Blocks, row_blocks
from replaceme.transforms.transform import Transform

LOGGER = logging.getLogger(__name__)
ITERATIONS = 10
SMALLEST_COSINE = 0.01  # below it a row's weight in the Gram stays that of this cosine: a Gram has no negative weights
SMALLEST_NORM = 1e-15
HALVINGS = 3


@dataclass(frozen=True)
class Pass:
    """Results of one pass over the rows with a T: mean cosine distances, and the weighted sums of the rows used for
    learning.
    """

    train: float
    held_out: float
    sums: Statistics


@dataclass
class Search:
    """State of the search on held-out rows: the best T and its loss on them, the next step to try, all tries."""

    best: torch.Tensor
    direction: torch.Tensor
    held_out: float
    step: float
    history: list[dict[str, Any]]
    done: bool = False

    def saved(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the content that `State` saves."""
        record = {"held_out": self.held_out, "step": self.step, "history": self.history, "done": self.done}
        return {"best": self.best, "direction": self.direction}, {"search": record}


def fit_cosine(
    given: GivenRows,
    objective: Objective,
    iterations: int | None = None,
    ridge_relative: float = 0.0,
    towards: Towards = "zero",
    tolerance: float = 1e-4,
) -> Transform:
    """Fit T float64 [in, out] that minimises `mean(1 - cos(m T, r))` (eq. 8), or if `exact`, `mean(1 - cos(m T + y, r +
    y))`. 8), or `mean(1 - cos(m T + y, r + y))` (eq. 7).

    The ridge is that of least squares, for the start and for every reweighted solve. Stops after `iterations` (10),
    when the held-out loss falls by less than `tolerance` of itself, or when halving a step does not help. Between
    passes the `state` is saved, from which an interrupted fit goes on. The report, beside that of least squares for T:
    steps (those that helped), cosine_distance of T over all rows, cosine_distance_least_squares of the start, `history`
    (train, held_out, step) of the T tried, without the held-out rows; the first is least squares. Rows whose p or l is
    zero do not count. Raises ReplaceMeError for fewer than two rows, and for an exact fit to rows without a state.
    """
    statistics, rows, device, state = given.statistics, given.rows, given.device, given.state
    ridge, blocks = Ridge(0.0, ridge_relative, towards), row_blocks(rows, device, objective.state)
    tensors, record = state.read(device) or ({}, {})
    if "losses" not in record:
        search = Search(**tensors, **record["search"]) if record else _begun(blocks, ridge, rows.columns, device)
        _judge(search, blocks, ridge, iterations or ITERATIONS, tolerance, state)
        tensors, record = {}, {"history": search.history, "losses": []}
    start = fit_least_squares(statistics, ridge_relative=ridge_relative, towards=towards)
    matrix = tensors.get("matrix", start.matrix.to(device))
    history, losses = record["history"], record["losses"]
    steps = [point["step"] for point in history if point["helped"]]
    for step in progress([*steps, None][len(losses) :], "cosine, all rows", unit="pass"):
        outcome = _pass(blocks, matrix, every=True)
        losses.append(outcome.train)
        if step is not None:
            matrix = matrix + step * (_solved(outcome.sums, ridge) - matrix)
            state.write(lambda matrix=matrix: ({"matrix": matrix}, record))
    report = {"solver": "irls", "ridge": start.report["ridge"], "steps": steps, "history": history}
    report |= {"cosine_distance": losses[-1], "cosine_distance_least_squares": losses[0]}
    matrix = matrix.to(statistics.gram.device)
    return reported(statistics, scaled(statistics, matrix) if objective.scale_free else matrix, report)


def _begun(blocks: Blocks, ridge: Ridge, columns: tuple[int, int], device: str | torch.device) -> Search:
    """Start a search from least squares without the held-out rows, with its loss and the first full step."""
    best = _solved(_plain(blocks, columns, device), ridge)
    found = _pass(blocks, best)
    return Search(best, _solved(found.sums, ridge) - best, found.held_out, 1.0, [_point(found, 0.0, helped=False)])


def _judge(search: Search, blocks: Blocks, ridge: Ridge, iterations: int, tolerance: float, state: State) -> None:
    """Take reweighted steps without the held-out rows, in place, and record each T's loss and whether its step
    helped.
    """
    for _ in progress(range(len(search.history) - 1, iterations), "cosine, held-out rows", unit="iteration"):
        if search.done:
            break
        tried = search.best + search.step * search.direction
        outcome = _pass(blocks, tried)
        gain = search.held_out - outcome.held_out
        search.history.append(_point(outcome, search.step, helped=gain > 0))
        LOGGER.info("cosine: %s", search.history[-1])
        if gain > 0:
            search.done = gain < tolerance * search.held_out
            search.best, search.held_out = tried, outcome.held_out
            search.direction = _solved(outcome.sums, ridge) - tried
        elif search.step <= 0.5**HALVINGS:
            search.done = True
        else:
            search.step /= 2
        state.write(search.saved)


def _point(outcome: Pass, step: float, helped: bool) -> dict[str, Any]:
    return {"train": outcome.train, "held_out": outcome.held_out, "step": step, "helped": helped}


def _plain(blocks: Blocks, columns: tuple[int, int], device: str | torch.device) -> Statistics:
    """Return the unweighted sums of the rows that are not held out."""
    sums = Statistics.zeros(columns[1], device, columns[0])
    for block in blocks():
        if not block.held_out:
            sums.add_batch(block.m, block.r)
    return sums


def _pass(blocks: Blocks, matrix: torch.Tensor, every: bool = False) -> Pass:
    """Compute the loss of T, and the sums reweighted by it, on T's device; `every`: no row is held out."""
    device, narrow = matrix.device, matrix.float()
    out = Sums.zeros(*matrix.shape, device)
    losses, counts, weight, used = [0.0, 0.0], [0, 0], 0.0, 0
    for block in blocks():
        held_out = block.held_out and not every
        dot, norm_p, norm_l = row_cosine(block.m, narrow, block.terms, block.y)
        counted = (norm_p > SMALLEST_NORM) & (norm_l > SMALLEST_NORM)
        dot, norm_p, norm_l = (values[counted].double() for values in (dot, norm_p, norm_l))
        cosine = (dot / (norm_p * norm_l)).clamp(-1, 1)
        losses[held_out] += float((1 - cosine).sum())
        counts[held_out] += len(cosine)
        if not held_out:
            w, v = (torch.zeros(len(block.m), dtype=torch.float64, device=device) for _ in range(2))
            w[counted] = cosine.clamp(min=SMALLEST_COSINE) / norm_p**2
            v[counted] = 1 / (norm_p * norm_l)
            _add(block, w, v, counted, out)
            weight += float(w.sum())
            used += len(cosine)
    if not counts[0] or not (counts[1] or every):
        raise ReplaceMeError(
            f"{sum(counts)} rows with a direction; a cosine fit needs rows to fit and rows to hold out"
        )
    total = torch.tensor(weight, dtype=torch.float64, device=device)
    sums = Statistics(out.gram, out.cross, out.energy, out.sum_x, out.sum_r, used, total)
    return Pass(losses[0] / counts[0], losses[1] / max(counts[1], 1), sums)


def _add(block: Block, w: torch.Tensor, v: torch.Tensor, counted: torch.Tensor, out: Sums) -> None:
    """Add `sum w m m^T` and `sum m (v l - w y)^T` of the counted rows of a block."""
    if block.y is None:
        gram_cross(block.m, (block.r,), w, v, counted, out)
        return
    # v l - w y = v r + (v - w) y without cancellation, in one product with m
    pulled = v.float()[:, None] * block.r + (v - w).float()[:, None] * block.y
    gram_cross(block.m, (pulled,), w, torch.ones_like(v), counted, out)


def _solved(sums: Statistics, ridge: Ridge) -> torch.Tensor:
    equations = normal_equations(sums, ridge)
    return equations.transform(solve_quickly(equations.system, equations.right))
