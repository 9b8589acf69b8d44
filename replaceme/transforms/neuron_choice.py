"""Choose the inputs of a linear map that it needs most, from sums over more of them than it may have.

    minimise over the kept inputs K  min over T_K  sum w |m_K T_K - r|^2 + alpha |T_K - T0_K|^2

by backward elimination, exact in each step, as the optimal brain surgeon prunes weights (Hassibi and Stork 1993; for
weights of a layer: SparseGPT, arXiv 2301.00774; for its inputs: ZipLM, arXiv 2302.04089). With A = G + alpha I,
H = A^-1 and T = H (C + alpha T0), taking out input k raises the minimum by

    |T_k|^2 / H_kk - alpha |T0_k|^2

(the second term is the penalty of a row that is gone), and what is left is `T - H_:k T_k / H_kk`,
`H - H_:k H_k: / H_kk`. Of the inputs with the least to lose, those to take out are found one after the other in the
part of H that is theirs; the rest of H and T follow for a block of them at a time, by products of matrices.
"""

import torch

from replaceme.activations.cholesky import factored
from replaceme.activations.statistics import Statistics
from replaceme.transforms.solve import check

BLOCK = 128  # inputs that are taken out before all of H follows
CANDIDATES = 2  # times as many, of which these are chosen


def keep_best(statistics: Statistics, origin: torch.Tensor, relative: float, keep: int) -> torch.Tensor:
    """Return the numbers of the `keep` inputs that are left, int64, ascending.

    origin: T0 float64 [width, hidden]. relative: alpha in units of the Gram's mean diagonal, positive. Inputs that are
    zero everywhere have nothing to lose.
    """
    t, inverse, penalty = _begun(statistics, origin, relative)
    left = torch.ones(len(t), dtype=torch.bool, device=t.device)
    while int(left.sum()) > keep:
        count = min(BLOCK, int(left.sum()) - keep)
        loss = (t.square().sum(1) / inverse.diagonal() - penalty).where(left, torch.inf)
        near = loss.argsort(stable=True)[: min(CANDIDATES * count, int(left.sum()))].sort().values
        gone = near[_one_by_one(inverse[near][:, near], t[near], penalty[near], count)]
        _take_out(t, inverse, gone)
        left[gone] = False
    return left.nonzero()[:, 0].cpu()


def keep_best_runs(statistics: Statistics, origin: torch.Tensor, relative: float, size: int, keep: int) -> list[int]:
    """Return the numbers of the `keep` runs of `size` inputs that are left, ascending; a run stays or goes as a whole.

    Taking out inputs K together raises the minimum by `tr(T_K^T H_KK^-1 T_K) - alpha |T0_K|^2`; one run goes after the
    other. The rest is as for `keep_best`.
    """
    t, inverse, penalty = _begun(statistics, origin, relative)
    runs = torch.arange(len(t), device=t.device).reshape(-1, size)
    left = list(range(len(runs)))
    while len(left) > keep:
        losses = [_loss(t[runs[k]], inverse[runs[k]][:, runs[k]]) - float(penalty[runs[k]].sum()) for k in left]
        _take_out(t, inverse, runs[left.pop(losses.index(min(losses)))])
    return left


def _begun(
    statistics: Statistics, origin: torch.Tensor, relative: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return T, H and alpha |T0_k|^2 of each input, with all inputs there; errors as in `check` and `factored`."""
    check(statistics)
    origin = origin.to(statistics.gram)
    alpha = relative * float(statistics.gram.diagonal().mean())
    factor = factored(statistics.gram, alpha)
    inverse = torch.cholesky_inverse(factor)
    t = torch.cholesky_solve(statistics.cross + alpha * origin, factor)
    return t, inverse, alpha * origin.square().sum(1)


def _take_out(t: torch.Tensor, inverse: torch.Tensor, gone: torch.Tensor) -> None:
    """Change T and H in place to those without some inputs."""
    columns = inverse[:, gone].clone()
    corner = torch.linalg.cholesky(columns[gone])
    t -= columns @ torch.cholesky_solve(t[gone], corner)
    inverse -= columns @ torch.cholesky_solve(columns.T, corner)
    t[gone] = 0.0


def _loss(t: torch.Tensor, corner: torch.Tensor) -> float:
    """Return tr(t^T corner^-1 t)."""
    return float((t * torch.cholesky_solve(t, torch.linalg.cholesky(corner))).sum())


def _one_by_one(inverse: torch.Tensor, t: torch.Tensor, penalty: torch.Tensor, count: int) -> torch.Tensor:
    """Return which `count` of some inputs go, each with the least to lose once those before it are gone."""
    gone: list[int] = []
    penalty = penalty.clone()
    for _ in range(count):
        loss = t.square().sum(1) / inverse.diagonal() - penalty
        loss[gone] = torch.inf
        k = int(loss.argmin())
        gone.append(k)
        column = inverse[:, k] / inverse[k, k]
        t = t - column[:, None] * t[k]
        inverse = inverse - column[:, None] * inverse[k]
    return torch.tensor(gone, device=t.device)
