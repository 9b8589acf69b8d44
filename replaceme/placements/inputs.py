"""`inputs`: what the neurons to recycle are chosen from (see `recycled_neurons`), and no place for a map.

m = the inputs of the down projection and of the MLP, side by side, or in place of the latter the activations of neurons
that are candidates; r as of `mlp`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme.core.places import Span
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import Placement, Rows

if TYPE_CHECKING:
    from replaceme.activations.capture import Activations
    from replaceme.activations.recycled_neurons import Recycled


class Inputs(Placement):
    """Sums over all that the MLP's neurons could be made of."""

    name = "inputs"

    def wanted(self, groups: Sequence[Span]) -> dict[str, frozenset[int]]:
        """Return both inputs of the carriers, beside what `mlp` wants."""
        carriers = frozenset(start - 1 for start, _ in groups)
        return Mlp().wanted(groups) | {"down_input": carriers, "mlp_input": carriers}

    def rows(self, activations: "Activations", cut: Span, recycled: "Recycled | None" = None) -> Rows:
        """Return (both inputs, or the first and what `recycled` computes from the second; the terms of r)."""
        import torch

        carrier = cut[0] - 1
        x = activations.mlp_input[carrier]
        m = torch.cat([activations.down_input[carrier], x if recycled is None else recycled.outputs(x)], -1)
        return m, Mlp().rows(activations, cut)[1]

    def width(self, hidden: int, intermediate: int) -> int:
        """Return the number of neurons, and the channels."""
        return intermediate + hidden
