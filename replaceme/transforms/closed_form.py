"""Fits of a full T: the identity (the blocks are dropped, UIDL) and least squares, with or without a ridge.

Least squares solves the normal equations `(G + alpha I) T = C + alpha T0` of eq. 6 and 9 of arXiv 2505.02819, with T0
zero or, beyond the paper, the identity or the old weight: where the text says little, the block's own output is kept.
"""

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.solve import Ridge, Towards, normal_equations, reported, solve
from replaceme.transforms.transform import Transform, r_squared, residual


def fit_identity(statistics: Statistics | None = None, hidden_size: int | None = None) -> Transform:
    """Return T = I: the run of blocks is dropped and nothing replaces it (UIDL).

    Statistics are only needed for the report (residual, r2, tokens); without them give the hidden size.
    """
    if statistics is None and hidden_size is None:
        raise ReplaceMeError("the identity needs statistics or a hidden size")
    if statistics is None:
        return Transform(torch.eye(hidden_size, dtype=torch.float64), {"solver": "identity"})
    matrix = torch.eye(statistics.hidden_size, dtype=torch.float64, device=statistics.gram.device)
    quality = {"residual": residual(statistics, matrix), "r2": r_squared(statistics, matrix)}
    return Transform(matrix, {"solver": "identity", **quality, "tokens": statistics.tokens})


def fit_least_squares(
    statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0, towards: Towards = "zero"
) -> Transform:
    """Fit least squares, `argmin_T sum w |m T - r|^2 + alpha |T - T0|^2`, `alpha = ridge + ridge_relative * mean(diag
    G)`.

    T float64 [hidden, hidden] (eq. 6, and eq. 9 with an L2 penalty); T0 is zero, the identity or a matrix of T's shape
    (`towards`). The report: solver ("cholesky" or "eigh"), rank, condition_number of the unit-diagonal Gram over the
    channels that are ever non-zero (None when it is singular), ridge (the alpha used), residual, r2, residual_identity
    (of T = I, for comparison), tokens.

    The residual equals that of `torch.linalg.lstsq` on the rows while the condition number is below
    `1 / (hidden * 2.2e-16)` (7e13 for 64 channels, 1e12 for 4096). Beyond it, eigenvalues that small relative to the
    largest are rounding noise and are left out: the solution of least norm in the scaled channels (counted from T0),
    whose residual is larger only by what those directions explain. Logs a warning when there are fewer tokens than
    channels. Raises ReplaceMeError for statistics that are empty, not finite or not a Gram, and for a negative ridge.
    """
    equations = normal_equations(statistics, Ridge(ridge, ridge_relative, towards))
    solution, report = solve(equations.system, equations.right)
    return reported(statistics, equations.transform(solution), {**report, "ridge": equations.alpha})
