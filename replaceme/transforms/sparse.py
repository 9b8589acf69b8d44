"""Fits with an L1 penalty on T (lasso), and with a ridge beside it (elastic net), from statistics alone.

`argmin_T 1/2 sum w |m T - r|^2 + lambda |T - T0|_1 + alpha/2 |T - T0|^2` by FISTA (Beck and Teboulle 2009) with
adaptive restarts (O'Donoghue and Candes 2015), in units where the Gram has a unit diagonal: the step is one number for
all channels, the threshold each channel's own.
"""

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.transforms.solve import Ridge, System, Towards, normal_equations, reported
from replaceme.transforms.transform import Transform

ITERATIONS = 5000
TOLERANCE = 1e-9  # of the optimality conditions, relative to the penalty at which nothing is left


def fit_elastic_net(
    statistics: Statistics,
    l1: float,
    ridge: float = 0.0,
    ridge_relative: float = 0.0,
    towards: Towards = "zero",
    iterations: int = ITERATIONS,
) -> Transform:
    """Fit the elastic net on T, or on T - I; `l1` in [0, 1) is a share of the smallest penalty that leaves T = T0.

    T float64 [hidden, hidden], sparse. The report: lambda, zeros (share of exact zeros in T - T0), iterations, gap (the
    largest violation of the optimality conditions, relative to that smallest penalty), beside those of least squares.
    """
    if not 0 <= l1 < 1:
        raise ReplaceMeError(f"l1 {l1}: must lie in [0, 1), a share of the penalty that leaves nothing")
    equations = normal_equations(statistics, Ridge(ridge, ridge_relative, towards))
    # |dD| in scaled units is |dS| / scale, so the threshold of a channel is lambda / scale
    most = float((equations.right.abs() * equations.scale[:, None]).amax()) if equations.right.numel() else 0.0
    penalty = (l1 * most / equations.scale)[:, None]
    solution, done, gap = _fista(equations, penalty, iterations, most)
    report = {"solver": "fista", "ridge": equations.alpha, "lambda": l1 * most, "iterations": done, "gap": gap}
    report["zeros"] = float((solution == 0).double().mean()) if solution.numel() else 1.0
    return reported(statistics, equations.transform(solution), report)


def _fista(equations: System, penalty: torch.Tensor, iterations: int, most: float) -> tuple[torch.Tensor, int, float]:
    """Minimise `1/2 tr(S^T A S) - tr(S^T B) + sum penalty |S|`; returns (S, iterations, gap)."""
    system, right = equations.system, equations.right
    solution = ahead = torch.zeros_like(right)
    if not right.numel() or most == 0:
        return solution, 0, 0.0
    step = 1 / float(torch.linalg.eigvalsh(system)[-1])
    momentum, gap, done = 1.0, float("inf"), 0
    for _ in progress(range(iterations), "elastic net", unit="iteration"):
        gradient = system @ ahead - right
        found = _shrink(ahead - step * gradient, step * penalty)
        # the proximal step's length is what is left of the optimality conditions at `ahead`
        gap = float(((found - ahead) * equations.scale[:, None]).abs().amax()) / step / most
        if ((ahead - found) * (found - solution)).sum() > 0:
            momentum = 1.0  # the momentum points uphill
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = found + (momentum - 1) / following * (found - solution)
        solution, momentum, done = found, following, done + 1
        if gap <= TOLERANCE:
            break
    return solution, done, gap


def _shrink(values: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    return values.sign() * (values.abs() - threshold).clamp(min=0)
