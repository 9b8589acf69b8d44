"""Ratios of the residual stream's size after a run of blocks to its size before, channel by channel.

ratio_j = mean over sequences of `sum_t |r_tj| / sum_t |m_tj|`, t the unmasked tokens of a sequence,
m = hidden_states[start-1], r = hidden_states[end-1], or both in another basis, `m B`. So do Prune&Comp (arXiv
2507.18212), which takes the mean over channels, and LinearPatch (arXiv 2505.24680), in a Hadamard basis.
"""

from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations
from replaceme.activations.targets import wanted_by
from replaceme.config.placement import Regression

if TYPE_CHECKING:
    import torch

STREAM = Regression("block")


class Magnitudes:
    """The ratios of a run [start, end), batch by batch; `basis` [hidden, hidden]: its columns are directions."""

    def __init__(self, group: tuple[int, int], basis: "torch.Tensor | None" = None) -> None:
        self.group, self.basis = group, basis
        self.wanted = wanted_by(STREAM, [group])
        self._total: torch.Tensor | float = 0.0
        self._sequences = 0

    def add(self, activations: Activations) -> None:
        """Add the sequences of a batch."""
        import torch

        states = (activations.hidden_states[block - 1] for block in self.group)
        before, after = (_sums(one, activations.mask, self.basis) for one in states)
        # a channel in which a sequence has nothing before the run counts 1 for it: there is nothing to scale
        ratios = torch.where(before > 0, after / before, 1.0)[activations.mask.any(1)]
        self._total = self._total + ratios.sum(0).cpu()
        self._sequences += len(ratios)

    def ratios(self) -> "torch.Tensor":
        """Return the ratios over all batches added so far [hidden], float64 on the CPU."""
        return self._total / self._sequences


def _sums(states: "torch.Tensor", mask: "torch.Tensor", basis: "torch.Tensor | None") -> "torch.Tensor":
    """Return the sums of magnitudes over the unmasked tokens of each sequence [samples, hidden], float64."""
    states = states.masked_fill(~mask[..., None], 0).double()
    if basis is not None:
        states = states @ basis.to(states.device)
    return states.abs().sum(1)
