"""The common part of fits from statistics: checks, the shift to the identity, and the solve of ill-conditioned systems.

Real Grams have condition numbers of 1e6 to 1e19, so every channel is first scaled to its own rms (a unit diagonal);
then Cholesky while float64 carries it, and beyond that an eigen-solve without the directions that are rounding noise.
"""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.transform import Transform, r_squared, residual

LOGGER = logging.getLogger(__name__)
EPSILON = torch.finfo(torch.float64).eps
Towards = Literal["zero", "identity"] | torch.Tensor  # T0 by its name, or itself


@dataclass(frozen=True)
class Ridge:
    """The penalty `alpha |T - T0|^2`, `alpha = absolute + relative * mean(diag G)`; `towards` T0: 0, I or a matrix."""

    absolute: float = 0.0
    relative: float = 0.0
    towards: Towards = "zero"

    def alpha(self, statistics: Statistics) -> float:
        """Return alpha for these statistics; raises ReplaceMeError for a negative or infinite one."""
        for name, value in (("ridge", self.absolute), ("ridge_relative", self.relative)):
            if not 0 <= value < float("inf"):
                raise ReplaceMeError(f"{name} must be finite and not negative, got {value}")
        return self.absolute + self.relative * float(statistics.gram.diagonal().mean())


@dataclass(frozen=True)
class System:
    """Normal equations over the channels that are ever non-zero: `system @ (scale * D) = right`, unit diagonal.

    `origin` is T0, what D = T - T0 is counted from: with it the target is `r - m T0`, the cross term `C - G T0`.
    """

    system: torch.Tensor
    right: torch.Tensor
    scale: torch.Tensor
    alive: torch.Tensor
    origin: torch.Tensor
    alpha: float

    def transform(self, solution: torch.Tensor) -> torch.Tensor:
        """Return T for a solution of the scaled equations; a dead channel keeps its row of T0."""
        matrix = self.origin.clone()
        matrix[self.alive] += solution / self.scale[:, None]
        return matrix


def normal_equations(statistics: Statistics, ridge: Ridge) -> System:
    """Return the scaled normal equations `(G + alpha I) D = C - G T0`; raises ReplaceMeError for unusable
    statistics.
    """
    check(statistics)
    alpha = ridge.alpha(statistics)
    warn_about_few_tokens(statistics, alpha)
    origin = torch.zeros_like(statistics.cross)
    right = statistics.cross
    if isinstance(ridge.towards, torch.Tensor):
        origin = ridge.towards.to(right)
        right = statistics.cross - statistics.gram @ origin
    elif ridge.towards == "identity":
        origin.fill_diagonal_(1.0)
        right = statistics.cross - statistics.gram
    diagonal = statistics.gram.diagonal()
    alive = diagonal > 0  # a channel that is always zero explains nothing
    scale = (diagonal[alive] + alpha).sqrt()
    system = statistics.gram[alive][:, alive]
    system.diagonal().add_(alpha)
    system /= scale[:, None] * scale
    return System(system, right[alive] / scale[:, None], scale, alive, origin, alpha)


def warn_about_few_tokens(statistics: Statistics, alpha: float) -> None:
    """Log a warning when there are fewer tokens than channels."""
    if statistics.tokens < statistics.hidden_size:
        LOGGER.warning(
            "%d calibration tokens for %d channels: the Gram has rank %d at most and %s; use more tokens",
            statistics.tokens,
            statistics.hidden_size,
            statistics.tokens,
            "the ridge decides the rest" if alpha else "the solution of least norm is taken",
        )


def solve(system: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """Solve `system @ solution = right` for a unit-diagonal Gram; returns (solution, solver, rank and condition)."""
    values = torch.linalg.eigvalsh(system)
    rank = int((values > cutoff(values)).sum())
    singular = not len(values) or float(values[0]) <= 0
    report = {"rank": rank, "condition_number": None if singular else float(values[-1] / values[0])}
    if rank == len(values):
        factor, failed = torch.linalg.cholesky_ex(system)
        if not failed:
            return torch.cholesky_solve(right, factor), {"solver": "cholesky", **report}
    values, vectors = torch.linalg.eigh(system)
    kept = values > cutoff(values)
    values, vectors = values[kept], vectors[:, kept]
    report["rank"] = len(values)
    return vectors @ ((vectors.T @ right) / values[:, None]), {"solver": "eigh", **report}


def solve_quickly(system: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve as `solve` does, without its report: by Cholesky where a few inverse iterations find the system well
    conditioned.
    """
    factor, failed = torch.linalg.cholesky_ex(system)
    if not failed and _smallest(factor) > len(system) * EPSILON * float(system.diagonal().sum()):
        return torch.cholesky_solve(right, factor)
    return solve(system, right)[0]


def _smallest(factor: torch.Tensor, iterations: int = 8) -> float:
    """Estimate the smallest eigenvalue of `factor factor^T`, from above, by inverse iteration from a fixed vector."""
    if not len(factor):
        return float("inf")
    vector = torch.linspace(1, 2, len(factor), dtype=factor.dtype, device=factor.device)[:, None]
    for _ in range(iterations):
        vector = torch.cholesky_solve(vector / vector.norm(), factor)
    return float(1 / vector.norm())


def cutoff(values: torch.Tensor) -> torch.Tensor | float:
    """Return the eigenvalue up to which eigenvalues (ascending) are noise.

    The noise is float64 rounding, or more when the sums were rounded: a Gram has no negative eigenvalue, so the most
    negative one shows how large the noise is.
    """
    if not len(values):
        return 0.0
    return torch.maximum(len(values) * EPSILON * values[-1], -2 * values[0])


def reported(statistics: Statistics, matrix: torch.Tensor, report: dict[str, Any]) -> Transform:
    """Return the transform with its residual, r2, the number of tokens and, of a square one, the identity's
    residual.
    """
    quality = {
        "residual": residual(statistics, matrix),
        "r2": r_squared(statistics, matrix),
        "tokens": statistics.tokens,
    }
    if statistics.width == statistics.hidden_size:
        quality["residual_identity"] = residual(statistics, torch.eye(len(matrix), dtype=torch.float64))
    return Transform(matrix, {**report, **quality})


def check(statistics: Statistics) -> None:
    """Raise ReplaceMeError for statistics that are empty, not finite, or not a Gram."""
    if statistics.tokens == 0:
        raise ReplaceMeError("no unmasked calibration tokens: nothing to fit")
    for name in ("gram", "cross", "target_energy"):
        if not getattr(statistics, name).isfinite().all():
            raise ReplaceMeError(f"the statistics hold NaN or infinity in {name}: the activations overflowed")
    smallest = float(statistics.gram.diagonal().min())
    if smallest < 0:
        raise ReplaceMeError(f"the Gram has a negative diagonal entry ({smallest:g}): were negative weights used?")
