"""What is fitted on what: the rows m and the target r of a transform, `m T ~ r`, by its placement, and their weights.

- mlp: m = M, what the carrier's MLP adds; r = hidden_states[end-1] - hidden_states[start-1] + M (eq. 6). T is folded
  into the down projection.
- down_proj: m = the input of the carrier's down projection, the same r. T [intermediate, hidden] is its new weight: the
  maps `W T` of the mlp placement are among these, and the parameters are as many as before.
- block: m = hidden_states[start-1], r = hidden_states[end-1]. T is a linear layer of its own after the carrier (A.9).
- upstream: as block; T, a multiple of the identity, goes into the weights that write to the stream (see `upstream`).
- inputs: m = the inputs of the down projection and of the MLP, side by side, and the r of mlp: no placement, but what
  the neurons to recycle are chosen from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from replaceme.capture import Activations, Wanted

if TYPE_CHECKING:
    import torch

    from replaceme.recycling import Recycled

Placement = Literal["mlp", "down_proj", "block", "inputs"]
Weighting = Literal["uniform", "inverse_energy"]


@dataclass(frozen=True)
class Regression:
    """A placement, and how tokens count: all alike, or by 1 / |r|^2 (`inverse_energy`: least squares of r / |r|).

    `recycle`: the share of the carrier's neurons that are recycled (see `recycling`).
    """

    placement: Placement = "mlp"
    weighting: Weighting = "uniform"
    recycle: float | None = None

    @property
    def kind(self) -> str:
        """The name of its sums as a path component."""
        weighting = "" if self.weighting == "uniform" else f"-{self.weighting}"
        return self.placement + weighting + ("" if self.recycle is None else f"-recycle-{self.recycle}")

    @property
    def before(self) -> "Regression | None":
        """Of a regression with recycled neurons: the one whose sums these are chosen from."""
        return None if self.recycle is None else Regression("inputs", self.weighting)

    def wanted(self, groups: Sequence[tuple[int, int]]) -> Wanted:
        """What has to be captured for every [start, end)."""
        states = frozenset(block for start, end in groups for block in (start - 1, end - 1))
        carriers = frozenset(start - 1 for start, _ in groups)
        return Wanted(
            states,
            mlp_output=carriers if self.placement != "block" else frozenset(),
            down_input=carriers if self.placement in ("down_proj", "inputs") else frozenset(),
            mlp_input=carriers if self.placement == "inputs" or self.recycle is not None else frozenset(),
        )

    def rows(
        self, activations: Activations, start: int, end: int, recycled: "Recycled | None" = None
    ) -> tuple["torch.Tensor", tuple["torch.Tensor", ...]]:
        """(m, the terms (a, b, c) of r = a - b + c, or (r,)) of a batch, [samples, tokens, width] each."""
        import torch

        carrier = start - 1
        state, goal = activations.hidden_states[carrier], activations.hidden_states[end - 1]
        if self.placement == "block":
            return state, (goal,)
        added = activations.mlp_output[carrier]
        if self.placement == "mlp":
            return added, (goal, state, added)
        m = activations.down_input[carrier]
        if self.placement == "inputs":
            m = torch.cat([m, activations.mlp_input[carrier]], -1)
        elif recycled is not None:
            m = recycled.apply(m, activations.mlp_input[carrier])
        return m, (goal, state, added)

    def unmasked(
        self, activations: Activations, start: int, end: int, recycled: "Recycled | None" = None
    ) -> tuple["torch.Tensor", "torch.Tensor"]:
        """(m [tokens, width], r [tokens, hidden]) of the unmasked tokens of a batch."""
        m, terms = self.rows(activations, start, end, recycled)
        return m[activations.mask], formed(tuple(term[activations.mask] for term in terms))

    def weights(self, terms: tuple["torch.Tensor", ...]) -> "torch.Tensor | None":
        """The weight of each token [samples, tokens], float32; None where all count alike."""
        if self.weighting == "uniform":
            return None
        energy = formed(terms).square().sum(-1)
        return (1 / energy).where(energy > 0, 0.0)  # a row without a direction asks for nothing


def formed(terms: tuple["torch.Tensor", ...]) -> "torch.Tensor":
    """r = a - b + c, or r alone, in float32 or wider."""
    import torch

    wide = [term.to(torch.promote_types(term.dtype, torch.float32)) for term in terms]
    return wide[0] if len(wide) == 1 else wide[0] - wide[1] + wide[2]
