"""Objectives of the gradient solvers: a mean over rows, and penalties on T (eq. 6 to 9 of arXiv 2505.02819). 6 to 9 of
arXiv 2505.02819).

    l2            mean |m T - r|^2 / out                     (eq. 6, as a mean square error over tokens and channels)
    cosine        mean (1 - cos(m T, r))                     (eq. 8)
    cosine_exact  mean (1 - cos(m T + y, r + y))             (eq. 7)
    + l1 sum |T_ij| + l2 sum T_ij^2                          (eq. 9)

Means, not sums, so that a penalty keeps its strength whatever the number of tokens. Derivatives are torch's, block by
block: no more than one block of rows is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.streams import Block, Blocks

SMALLEST_SQUARE = 1e-30  # a row shorter than 1e-15 has no direction and does not count
Name = Literal["l2", "cosine", "cosine_exact"]


@dataclass(frozen=True)
class Objective:
    """An objective by name, with the strengths of its penalties."""

    name: Name = "cosine"
    l1: float = 0.0
    l2: float = 0.0

    @property
    def state(self) -> bool:
        """True if it needs the residual stream of each row."""
        return self.name == "cosine_exact"

    @property
    def scale_free(self) -> bool:
        """True if it does not depend on the length of T."""
        return self.name == "cosine"

    def total(self, matrix: torch.Tensor, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (sum over the rows of a block, number of rows that count), in T's dtype and differentiable in T
        twice.
        """
        p, target = block.m.to(matrix.dtype) @ matrix, block.r.to(matrix.dtype)
        if self.name == "l2":
            return (p - target).square().mean(1).sum(), torch.tensor(len(p), device=p.device)
        if self.state:
            y = block.y.to(matrix.dtype)
            p, target = p + y, target + y
        squares = [rows.square().sum(1) for rows in (p, target)]
        counted = (squares[0] > SMALLEST_SQUARE) & (squares[1] > SMALLEST_SQUARE)
        lengths = [torch.where(counted, square, 1.0).rsqrt() for square in squares]
        cosine = (p * target).sum(1) * lengths[0] * lengths[1]
        return torch.where(counted, 1 - cosine, 0.0).sum(), counted.sum()

    def penalty(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return `l1 sum |T_ij| + l2 sum T_ij^2`; at 0 autograd takes 0 out of the subgradients of |T_ij|."""
        return self.l1 * matrix.abs().sum() + self.l2 * matrix.square().sum()

    def mean(self, blocks: Blocks, matrix: torch.Tensor) -> float:
        """Return the mean over all rows for a T, without penalties."""
        with torch.no_grad():
            return float(_streamed(blocks, lambda block: self.total(matrix, block)))

    def value_and_gradient(self, blocks: Blocks, matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean over all rows with penalties [], and its gradient [in, out], in one pass."""

        def total(block: Block) -> tuple[torch.Tensor, ...]:
            at = matrix.detach().requires_grad_()
            value, count = self.total(at, block)
            return value.detach(), torch.autograd.grad(value, at)[0], count

        with torch.enable_grad():
            value, gradient = _streamed(blocks, total)
            at = matrix.detach().requires_grad_()
            penalty = self.penalty(at)
            return value + penalty.detach(), gradient + torch.autograd.grad(penalty, at)[0]

    def curvature(self, blocks: Blocks, matrix: torch.Tensor, along: torch.Tensor) -> torch.Tensor:
        """Return the Hessian at T times a direction, [in, out], without the Hessian: one pass of double backward."""

        def product(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
            at = matrix.detach().requires_grad_()
            value, count = self.total(at, block)
            gradient = torch.autograd.grad(value, at, create_graph=True)[0]
            return torch.autograd.grad(gradient, at, along)[0], count

        with torch.enable_grad():
            return _streamed(blocks, product) + 2 * self.l2 * along


def _streamed(blocks: Blocks, terms: Callable[[Block], tuple[torch.Tensor, ...]]):
    """Sum all outputs of `terms` over the blocks, and divide them by the last one, the number of rows."""
    totals = None
    for block in blocks():
        found = terms(block)
        totals = found if totals is None else [total + one for total, one in zip(totals, found, strict=True)]
    count = int(totals[-1]) if totals else 0
    if not count:
        raise ReplaceMeError("no row has a direction: nothing to fit")
    means = [total.double() / count if total.ndim == 0 else total / count for total in totals[:-1]]
    return means[0] if len(means) == 1 else means
