"""Distances between the representations of all pairs of blocks, rather than between the states of each token.

Both from a subset of the tokens, centred, H_i [tokens, hidden] the states after block i (A.10 of arXiv 2505.02819):

- cka: 1 - linear CKA, `<K_i, K_j> / (|K_i| |K_j|)` of the token kernels `K_i = H_i H_i^T`.
- cca: 1 - mean canonical correlation, the singular values of `Q_i^T Q_j`, Q_i an orthonormal basis of the columns of
  H_i without directions below 1e-6 of the largest; the mean is over the smaller of the two ranks. With few tokens all
  states span the same space, so it is left out where there are less than two for each channel.

Costs: a kernel [tokens, tokens] of each state, and a singular value decomposition of [hidden, hidden] of each pair.
"""

from collections.abc import Sequence

import torch

TOKENS = 2048  # of the subset
SMALLEST = 1e-6  # of the largest singular value: directions below are rounding of the forward pass


def cka(centred: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the matrix of 1 - linear CKA, float64 [L, L], of L centred states [tokens, hidden]; zero diagonal."""
    kernels = torch.stack([(state @ state.T).flatten() for state in centred])
    products = kernels @ kernels.T
    norms = products.diagonal().sqrt()
    return _distances(products / (norms[:, None] * norms))


def cca(centred: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the matrix of 1 - mean canonical correlation, as `cka`; None where the tokens are too few to distinguish
    states.
    """
    tokens, hidden = centred[0].shape
    if tokens < 2 * hidden:
        return None
    bases = []
    for state in centred:
        left, values, _ = torch.linalg.svd(state, full_matrices=False)
        bases.append(left[:, values > SMALLEST * values[0]])
    found = torch.eye(len(bases), dtype=torch.float64, device=centred[0].device)
    for i, one in enumerate(bases):
        for j in range(i):
            correlations = torch.linalg.svdvals(one.T @ bases[j])
            found[i, j] = found[j, i] = correlations.clamp(max=1).mean()
    return _distances(found)


def _distances(similarity: torch.Tensor) -> torch.Tensor:
    found = (1 - (similarity + similarity.T) / 2).clamp(min=0).cpu()
    return found.fill_diagonal_(0)
