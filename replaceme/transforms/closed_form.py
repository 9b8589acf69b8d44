"""Fits with a closed form: the identity (the blocks are dropped, UIDL) and least squares, with or without a ridge.

Least squares solves the normal equations `(G + alpha I) T = C` of eq. 6 and 9 of arXiv 2505.02819. Real Grams have
condition numbers of 1e6 to 1e19, so every channel is first scaled to its own rms (a unit diagonal); then Cholesky while
float64 carries it, and beyond that an eigen-solve without the directions that are rounding noise.
"""

import logging
from typing import Any

import torch

from replaceme.errors import ReplaceMeError
from replaceme.statistics import Statistics
from replaceme.transforms.transform import Transform, r_squared, residual

LOGGER = logging.getLogger(__name__)
EPSILON = torch.finfo(torch.float64).eps


def fit_identity(statistics: Statistics | None = None, hidden_size: int | None = None) -> Transform:
    """T = I: the run of blocks is dropped and nothing replaces it (UIDL).

    Statistics are only needed for the report (residual, r2, tokens); without them give the hidden size.
    """
    if statistics is None and hidden_size is None:
        raise ReplaceMeError("the identity needs statistics or a hidden size")
    if statistics is None:
        return Transform(torch.eye(hidden_size, dtype=torch.float64), {"solver": "identity"})
    matrix = torch.eye(statistics.hidden_size, dtype=torch.float64, device=statistics.gram.device)
    return Transform(matrix, {"solver": "identity", **_quality(statistics, matrix)})


def fit_least_squares(statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0) -> Transform:
    """Least squares, `argmin_T sum w |m T - r|^2 + alpha |T|^2` with `alpha = ridge + ridge_relative * mean(diag G)`.

    T float64 [hidden, hidden] (eq. 6, and eq. 9 with an L2 penalty). The report: solver ("cholesky" or "eigh"), rank,
    condition_number of the unit-diagonal Gram over the channels that are ever non-zero (None when it is singular),
    ridge (the alpha used), residual, r2, residual_identity (of T = I, for comparison), tokens.

    The residual equals that of `torch.linalg.lstsq` on the rows while the condition number is below
    `1 / (hidden * 2.2e-16)` (7e13 for 64 channels, 1e12 for 4096). Beyond it, eigenvalues that small relative to the
    largest are rounding noise and are left out: the solution of least norm in the scaled channels, whose residual is
    larger only by what those directions explain. Logs a warning when there are fewer tokens than channels. Raises
    ReplaceMeError for statistics that are empty, not finite or not a Gram, and for a negative ridge.
    """
    _check(statistics, ridge, ridge_relative)
    diagonal = statistics.gram.diagonal()
    alpha = ridge + ridge_relative * float(diagonal.mean())
    if statistics.tokens < statistics.hidden_size:
        LOGGER.warning(
            "%d calibration tokens for %d channels: the Gram has rank %d at most and %s; use more tokens",
            statistics.tokens,
            statistics.hidden_size,
            statistics.tokens,
            "the ridge decides the rest" if alpha else "the solution of least norm is taken",
        )
    alive = diagonal > 0  # a channel that is always zero explains nothing: its row of T is zero
    scale = (diagonal[alive] + alpha).sqrt()
    system = statistics.gram[alive][:, alive]
    system.diagonal().add_(alpha)
    system /= scale[:, None] * scale
    solution, report = _solve(system, statistics.cross[alive] / scale[:, None])
    matrix = torch.zeros_like(statistics.cross)
    matrix[alive] = solution / scale[:, None]
    report |= {"ridge": alpha, **_quality(statistics, matrix)}
    report["residual_identity"] = residual(statistics, torch.eye(len(matrix), dtype=torch.float64))
    return Transform(matrix, report)


def _solve(system: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Solve `system @ solution = right` for a unit-diagonal Gram; returns (solution, solver, rank and condition)."""
    values = torch.linalg.eigvalsh(system)
    rank = int((values > _cutoff(values)).sum())
    singular = not len(values) or float(values[0]) <= 0
    report = {"rank": rank, "condition_number": None if singular else float(values[-1] / values[0])}
    if rank == len(values):
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            return torch.cholesky_solve(right, factor), {"solver": "cholesky", **report}
    values, vectors = torch.linalg.eigh(system)
    kept = values > _cutoff(values)
    values, vectors = values[kept], vectors[:, kept]
    report["rank"] = len(values)
    return vectors @ ((vectors.T @ right) / values[:, None]), {"solver": "eigh", **report}


def _cutoff(values: torch.Tensor) -> torch.Tensor | float:
    """Eigenvalues (ascending) up to this one are noise.

    The noise is float64 rounding, or more when the sums were rounded: a Gram has no negative eigenvalue, so the most
    negative one shows how large the noise is.
    """
    if not len(values):
        return 0.0
    return torch.maximum(len(values) * EPSILON * values[-1], -2 * values[0])


def _quality(statistics: Statistics, matrix: torch.Tensor) -> dict[str, Any]:
    return {
        "residual": residual(statistics, matrix),
        "r2": r_squared(statistics, matrix),
        "tokens": statistics.tokens,
    }


def _check(statistics: Statistics, ridge: float, ridge_relative: float) -> None:
    for name, value in (("ridge", ridge), ("ridge_relative", ridge_relative)):
        if not 0 <= value < float("inf"):
            raise ReplaceMeError(f"{name} must be finite and not negative, got {value}")
    if statistics.tokens == 0:
        raise ReplaceMeError("no unmasked calibration tokens: nothing to fit")
    for name in ("gram", "cross", "target_energy"):
        if not getattr(statistics, name).isfinite().all():
            raise ReplaceMeError(f"the statistics hold NaN or infinity in {name}: the activations overflowed")
    smallest = float(statistics.gram.diagonal().min())
    if smallest < 0:
        raise ReplaceMeError(f"the Gram has a negative diagonal entry ({smallest:g}): were negative weights used?")
