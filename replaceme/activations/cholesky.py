"""The Cholesky factor by which neurons and heads are chosen."""

import torch

from replaceme.core.errors import ReplaceMeError


def factored(gram: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return the Cholesky factor of `gram + alpha I`; raises ReplaceMeError where float64 finds none."""
    system = gram.clone()
    system.diagonal().add_(alpha)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        why = "too alike for so small a ridge" if gram.any() else "zero in every token"
        raise ReplaceMeError(f"neurons or heads cannot be chosen: they are {why}; use other or more calibration text")
    return factor
