"""How much larger the residual stream is after a run of blocks than before it, channel by channel.

ratio_j = mean over sequences of `sum_t |r_tj| / sum_t |m_tj|`, t the unmasked tokens of a sequence,
m = hidden_states[start-1], r = hidden_states[end-1], or both in another basis, `m B`. So do Prune&Comp (arXiv
2507.18212), which takes the mean over channels, and LinearPatch (arXiv 2505.24680), in a Hadamard basis.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from replaceme.capture import Activations

if TYPE_CHECKING:
    import torch


def magnitude_ratios(
    passes: Iterable[Activations], group: tuple[int, int], basis: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """The ratios [hidden] of a run [start, end), float64 on the CPU; `basis` [hidden, hidden], its columns directions.

    A channel in which a sequence has nothing before the run counts 1 for it: there is nothing to scale.
    """
    import torch

    start, end = group
    total, sequences = torch.zeros(()), 0
    for activations in passes:
        sums = [_sums(activations.hidden_states[block - 1], activations.mask, basis) for block in (start, end)]
        ratios = torch.where(sums[0] > 0, sums[1] / sums[0], 1.0)[activations.mask.any(1)]
        total = total + ratios.sum(0).cpu()
        sequences += len(ratios)
    return total / sequences


def _sums(states: "torch.Tensor", mask: "torch.Tensor", basis: "torch.Tensor | None") -> "torch.Tensor":
    """Sums of magnitudes over the unmasked tokens of each sequence [samples, hidden], float64."""
    states = states.masked_fill(~mask[..., None], 0).double()
    if basis is not None:
        states = states @ basis.to(states.device)
    return states.abs().sum(1)
