"""Fits of a T that only scales, by least squares in closed form: all channels alike, or each in a Hadamard basis.

They are the least-squares forms of two published repairs of magnitudes (as published: `magnitude`), for comparison;
both take any placement.
"""

import math

import torch

from replaceme.activations.statistics import Statistics
from replaceme.transforms.solve import Ridge, Towards, check, reported
from replaceme.transforms.transform import Transform


def fit_scalar(
    statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0, towards: Towards = "zero"
) -> Transform:
    """Fit one factor for all channels, `T = t I`, `t = tr C / (tr G + alpha d)`; towards the identity that of t - 1.

    Like Prune&Comp (arXiv 2507.18212), which closes the gap in magnitude that removed blocks leave, by a ratio of
    magnitudes; here it is the least-squares factor. The report holds `scale` (t); errors as for least squares.
    """
    check(statistics)
    alpha = Ridge(ridge, ridge_relative, towards).alpha(statistics)
    eye = torch.eye(statistics.hidden_size, dtype=torch.float64, device=statistics.gram.device)
    factor = _factors(statistics.cross.trace(), statistics.gram.trace(), alpha * len(eye), towards)
    return reported(statistics, factor * eye, {"solver": "scalar", "scale": float(factor), "ridge": alpha})


def fit_hadamard(
    statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0, towards: Towards = "zero"
) -> Transform:
    """Fit one factor for each direction of a Hadamard basis, `T = H diag(s) H^T` (symmetric), H of `hadamard`.

    `s_j = (H^T C H)_jj / ((H^T G H)_jj + alpha)`; towards the identity that is of s - 1. The form of T is that of
    LinearPatch (NeurIPS 2025, arXiv 2505.24680). Its factors are ratios of mean magnitudes before and after the cut
    in the rotated channels, on the residual stream, optionally distilled; ours are least squares at any placement.
    The report holds `smallest` and `largest`, the range of s; errors as for least squares.
    """
    check(statistics)
    alpha = Ridge(ridge, ridge_relative, towards).alpha(statistics)
    basis = hadamard(statistics.hidden_size).to(statistics.gram.device)
    cross, gram = ((basis * (sums @ basis)).sum(0) for sums in (statistics.cross, statistics.gram))
    factors = _factors(cross, gram, alpha, towards)
    report = {"solver": "hadamard", "smallest": float(factors.min()), "largest": float(factors.max()), "ridge": alpha}
    return reported(statistics, (basis * factors) @ basis.T, report)


def hadamard(size: int) -> torch.Tensor:
    """Return an orthonormal float64 [size, size]: Sylvester's Hadamard matrix of the largest power of two that divides
    size.

    For an odd rest above 1 it is the Kronecker product with the orthonormal DCT-II of that size, frequencies in
    columns: every direction still mixes all channels that it can.
    """
    odd = size // (size & -size)
    channel = torch.arange(odd, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / odd * (channel + 0.5) * channel.T) * (2 / odd) ** 0.5
    basis[:, 0] /= 2**0.5
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    while len(basis) < size:
        basis = torch.kron(step, basis)
    return basis


def _factors(cross: torch.Tensor, gram: torch.Tensor, alpha: float, towards: Towards) -> torch.Tensor:
    """Return argmin over s of `gram s^2 - 2 cross s + alpha (s - origin)^2` for each; the origin where all terms
    are 0.
    """
    origin = float(towards == "identity")
    weight = gram + alpha
    return torch.where(weight > 0, origin + (cross - origin * gram) / weight, origin)
