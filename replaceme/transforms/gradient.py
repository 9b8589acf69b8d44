"""Fits by gradients over stored rows: the solvers that the paper compares (arXiv 2505.02819, A.6, Table 8).

`adam` is the paper's default for the cosine objectives and, as "MSE by Adam", its check of least squares; `lbfgs`,
`nlcg` and `trust_ncg` see all rows at each step. All start at T = I.
"""

from typing import Any, Literal

import torch

from replaceme.activations.rows import Rows
from replaceme.activations.statistics import Statistics
from replaceme.transforms.adam import AdamOptions, adam
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.cosine import check_width, scaled
from replaceme.transforms.full_batch import ITERATIONS, SOLVERS, Problem
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.solve import reported
from replaceme.transforms.streams import Blocks, Table, row_blocks
from replaceme.transforms.transform import Transform

BLOCK_ROWS = 8192  # their float64 copies and derivatives are held at once
Solver = Literal["adam", "nlcg", "lbfgs", "trust_ncg"]


def fit_gradient(
    statistics: Statistics,
    rows: Rows,
    objective: Objective,
    solver: Solver = "adam",
    options: AdamOptions | int | None = None,
    device: str | torch.device = "cpu",
    state: State | None = None,
) -> Transform:
    """Fit T float64 [in, out] that minimises an objective over the rows by a gradient solver from T = I.

    `options`: Adam's, or the most iterations of a full-batch solver (100). An interrupted fit goes on from its `state`.
    Adam's T is left as it is, as the authors leave it; the others follow eq. 8 so far that the length of T, which it
    does not see, means nothing, and is set as least squares would set it. The report, beside that of least squares for
    T: solver, `loss` of T over all rows (cosine_distance, or mean_squared_error over tokens and channels), the same of
    least squares, `history` of the loss by epoch (Adam), iteration (lbfgs) or round, penalties included but for Adam.
    Raises ReplaceMeError for rows of another width, without the state that the objective needs, or all zero.
    """
    check_width(statistics, rows)
    state = state or State()
    blocks = row_blocks(rows, device, objective.state, BLOCK_ROWS)
    if solver == "adam":
        table = Table(rows, device, objective.state)
        matrix, history = adam(table, objective, options or AdamOptions(), state)
    else:
        problem = Problem(objective, blocks, rows.columns, device)
        matrix, history = SOLVERS[solver](problem, options or ITERATIONS, state)
    matrix = matrix.double().cpu()
    if objective.scale_free and solver != "adam":
        matrix = scaled(statistics, matrix)
    report = {"solver": solver, "history": history, **_losses(statistics, objective, blocks, matrix, device)}
    return reported(statistics, matrix, report)


def _losses(
    statistics: Statistics, objective: Objective, blocks: Blocks, matrix: torch.Tensor, device: str | torch.device
) -> dict[str, Any]:
    """Return the objective over all rows, without penalties, of T and of least squares."""
    name = "mean_squared_error" if objective.name == "l2" else "cosine_distance"
    start = fit_least_squares(statistics).matrix
    return {
        name: objective.mean(blocks, matrix.to(device)),
        f"{name}_least_squares": objective.mean(blocks, start.to(device)),
    }
