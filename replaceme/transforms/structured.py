"""Fits of a T with fewer degrees of freedom, each in closed form: diagonal, orthogonal, low-rank, lower-triangular.

Diagonal and orthogonal are of section A.3 of arXiv 2505.02819 (Table 7). With `towards: identity` the structure is that
of T - I (a low-rank or triangular correction of the block's own output), and so is the ridge.
"""

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.solve import Ridge, Towards, check, normal_equations, reported, solve
from replaceme.transforms.transform import Transform

JITTER = 1e-13  # of the unit diagonal, times ten until a singular system has a Cholesky factor


def fit_diagonal(
    statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0, towards: Towards = "zero"
) -> Transform:
    """Fit one factor for each channel, `t_i = C_ii / (G_ii + alpha)` (A.3); report and errors as for least squares."""
    equations = normal_equations(statistics, Ridge(ridge, ridge_relative, towards))
    own = equations.right[:, equations.alive].diagonal()
    solution = torch.zeros_like(equations.right)
    solution[:, equations.alive] = torch.diag(own)
    report = {"solver": "diagonal", "ridge": equations.alpha}
    return reported(statistics, equations.transform(solution), report)


def fit_orthogonal(statistics: Statistics) -> Transform:
    """Fit orthogonal Procrustes: `T = U V^T` of the SVD `C = U S V^T` minimises `sum w |m T - r|^2` over T^T T = I
    (A.3).

    Singular vectors of singular value zero are an arbitrary orthonormal completion. The report holds `rank`, the
    number of singular values above rounding.
    """
    check(statistics)
    left, values, right = torch.linalg.svd(statistics.cross)
    rank = int((values > len(values) * torch.finfo(torch.float64).eps * values[0]).sum())
    return reported(statistics, left @ right, {"solver": "svd", "rank": rank})


def fit_low_rank(
    statistics: Statistics,
    rank: int,
    ridge: float = 0.0,
    ridge_relative: float = 0.0,
    towards: Towards = "zero",
) -> Transform:
    """Fit a reduced-rank regression: the best T (or T - I) of at most `rank`; rank 1 is a product of two vectors.

    With the full solution D and C' its right side, `D V V^T`, V the leading eigenvectors of `D^T C'`, the part of the
    target's energy that each direction of the output explains. Raises ReplaceMeError for a rank below 1 or above d.
    """
    if not 1 <= rank <= statistics.hidden_size:
        raise ReplaceMeError(f"rank {rank}: must lie between 1 and the hidden size {statistics.hidden_size}")
    equations = normal_equations(statistics, Ridge(ridge, ridge_relative, towards))
    full, report = solve(equations.system, equations.right)
    explained = full.T @ equations.right
    values, vectors = torch.linalg.eigh((explained + explained.T) / 2)
    leading = vectors[:, -rank:]
    kept = float(values[-rank:].sum() / values.clamp(min=0).sum().clamp(min=torch.finfo(torch.float64).tiny))
    report |= {"rank": rank, "explained_share": kept, "ridge": equations.alpha}
    return reported(statistics, equations.transform((full @ leading) @ leading.T), report)


def fit_lower_triangular(
    statistics: Statistics, ridge: float = 0.0, ridge_relative: float = 0.0, towards: Towards = "zero"
) -> Transform:
    """Fit least squares over lower-triangular T: output channel j is made of the channels i >= j alone.

    Column j solves the trailing system `G[j:, j:] t = C[j:, j]`. With `G = U U^T`, U upper triangular, all columns
    come at once: `T = U^-T tril(U^-1 C)`. Where G is singular, the smallest multiple of the identity (reported as
    `jitter`, of the unit-diagonal Gram) that gives a factor is added.
    """
    equations = normal_equations(statistics, Ridge(ridge, ridge_relative, towards))
    size = len(equations.system)
    turned = equations.system.flip(0, 1)
    factor, failed = torch.linalg.cholesky_ex(turned)
    jitter = 0.0
    while failed or not factor.isfinite().all():
        jitter = max(JITTER, 10 * jitter)
        factor, failed = torch.linalg.cholesky_ex(turned + jitter * torch.eye(size, dtype=turned.dtype))
    upper = factor.flip(0, 1)
    half = torch.linalg.solve_triangular(upper, equations.right, upper=True)
    channels = torch.arange(statistics.hidden_size, device=half.device)
    half[equations.alive.nonzero() < channels] = 0
    solution = torch.linalg.solve_triangular(upper.T, half, upper=False)
    report = {"solver": "triangular", "jitter": jitter, "ridge": equations.alpha}
    return reported(statistics, equations.transform(solution), report)
