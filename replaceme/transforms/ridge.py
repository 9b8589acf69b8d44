"""Choose the penalty of least squares (`ridge: auto`) by leaving out one shard of the calibration text at a time.

Statistics are additive, so the sums without a shard are a subtraction away, and with one eigendecomposition of each of
them every penalty costs a product of matrices, no pass over text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.solve import Towards, check
from replaceme.transforms.transform import Transform

GRID = tuple(10 ** (exponent / 2) for exponent in range(-16, 5))  # 1e-8 to 1e2, in units of the mean diagonal


@dataclass(frozen=True)
class Shards:
    """Statistics by shard, loaded one at a time: `load(k)` for k < count."""

    count: int
    load: Callable[[int], Statistics]

    @staticmethod
    def of(statistics: Sequence[Statistics]) -> "Shards":
        """Return shards held in memory."""
        return Shards(len(statistics), statistics.__getitem__)


def fit_auto_ridge(
    statistics: Statistics, shards: Shards, towards: Towards = "zero", grid: Sequence[float] = GRID
) -> Transform:
    """Fit least squares with the `ridge_relative` of `grid` whose residual on left-out shards is smallest.

    `statistics` is the sum of all shards. The report is that of `fit_least_squares`, with ridge_relative and `curve`:
    for each penalty its held-out residual over all shards (`sum w |m T - r|^2 / sum w |r|^2`) and the one of each.
    Raises ReplaceMeError for fewer than two shards, or shards that are not those of the sum.
    """
    check(statistics)
    if shards.count < 2:
        raise ReplaceMeError("ridge auto leaves out one shard at a time: set `shards` of the calibration to 2 or more")
    misses, energies, tokens = [], [], 0
    for k in progress(range(shards.count), "ridge auto", unit="shard"):
        held_out = shards.load(k)
        check(held_out)
        tokens += held_out.tokens
        misses.append(_held_out(statistics - held_out, held_out, towards, grid))
        energies.append(float(held_out.target_energy))
    if tokens != statistics.tokens:
        raise ReplaceMeError(f"ridge auto: the shards hold {tokens} tokens, their sum {statistics.tokens}")
    curve = [
        {
            "ridge_relative": alpha,
            "residual": sum(errors) / sum(energies),
            "by_shard": [error / energy for error, energy in zip(errors, energies, strict=True)],
        }
        for alpha, errors in zip(grid, zip(*misses, strict=True), strict=True)
    ]
    best = min(curve, key=lambda point: point["residual"])["ridge_relative"]
    found = fit_least_squares(statistics, ridge_relative=best, towards=towards)
    return Transform(found.matrix, {**found.report, "ridge_relative": best, "curve": curve})


def _held_out(train: Statistics, test: Statistics, towards: Towards, grid: Sequence[float]) -> list[float]:
    """Return `sum w |m T - r|^2` over the held-out tokens for each penalty.

    In the eigenvectors of the training Gram, `T = V X` with `X = (V^T C + alpha V^T T0) / (values + alpha)`.
    """
    values, vectors = torch.linalg.eigh(train.gram)
    values = values.clamp(min=0)
    right = vectors.T @ train.cross
    gram = vectors.T @ test.gram @ vectors
    cross = vectors.T @ test.cross
    pull = torch.zeros_like(right)
    if isinstance(towards, torch.Tensor):
        pull = vectors.T @ towards.to(right)
    elif towards == "identity":
        pull = vectors.T
    errors = []
    for relative in grid:
        alpha = relative * float(train.gram.diagonal().mean())
        x = (right + alpha * pull) / (values + alpha)[:, None]
        errors.append(float((x * (gram @ x - 2 * cross)).sum() + test.target_energy))
    return errors
