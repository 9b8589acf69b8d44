"""Define the rows m and the target r of a transform, `m T ~ r`, by its placement, and the weights of the rows.

- mlp: m = M, what the carrier's MLP adds; r = hidden_states[end-1] - hidden_states[start-1] + M (eq. 6). T is folded
  into the down projection.
- down_proj: m = the input of the carrier's down projection, the same r. T [intermediate, hidden] is its new weight: the
  maps `W T` of the mlp placement are among these, and the parameters are as many as before.
- block: m = hidden_states[start-1], r = hidden_states[end-1]. T is a linear layer of its own after the carrier (A.9).
- upstream: as block; T, a multiple of the identity, goes into the weights that write to it (see `stream_scale`).
- inputs: m = the inputs of the down projection and of the MLP, side by side, and the r of mlp: no placement, but the
  rows that the recycled neurons are chosen from.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations, Wanted
from replaceme.config.placement import Regression

if TYPE_CHECKING:
    import torch

    from replaceme.activations.recycled_neurons import Recycled


def wanted_by(regression: Regression, groups: Sequence[tuple[int, int]]) -> Wanted:
    """Return the activations to capture for every [start, end)."""
    states = frozenset(block for start, end in groups for block in (start - 1, end - 1))
    carriers = frozenset(start - 1 for start, _ in groups)
    return Wanted(
        states,
        mlp_output=carriers if regression.placement != "block" else frozenset(),
        down_input=carriers if regression.placement in ("down_proj", "inputs") else frozenset(),
        mlp_input=carriers if regression.placement == "inputs" or regression.recycle is not None else frozenset(),
    )


def rows_of(
    regression: Regression, activations: Activations, start: int, end: int, recycled: "Recycled | None" = None
) -> tuple["torch.Tensor", tuple["torch.Tensor", ...]]:
    """Return (m, the terms (a, b, c) of r = a - b + c, or (r,)) of a batch, [samples, tokens, width] each."""
    import torch

    carrier = start - 1
    state, goal = activations.hidden_states[carrier], activations.hidden_states[end - 1]
    if regression.placement == "block":
        return state, (goal,)
    added = activations.mlp_output[carrier]
    if regression.placement == "mlp":
        return added, (goal, state, added)
    m = activations.down_input[carrier]
    if regression.placement == "inputs":
        m = torch.cat([m, activations.mlp_input[carrier]], -1)
    elif recycled is not None:
        m = recycled.apply(m, activations.mlp_input[carrier])
    return m, (goal, state, added)


def unmasked_rows_of(
    regression: Regression, activations: Activations, start: int, end: int, recycled: "Recycled | None" = None
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return (m [tokens, width], r [tokens, hidden]) of the unmasked tokens of a batch."""
    m, terms = rows_of(regression, activations, start, end, recycled)
    return m[activations.mask], formed(tuple(term[activations.mask] for term in terms))


def weights_of(regression: Regression, terms: tuple["torch.Tensor", ...]) -> "torch.Tensor | None":
    """Return the weight of each token [samples, tokens], float32; None where all count alike."""
    if regression.weighting == "uniform":
        return None
    energy = formed(terms).square().sum(-1)
    return (1 / energy).where(energy > 0, 0.0)  # a row without a direction asks for nothing


def formed(terms: tuple["torch.Tensor", ...]) -> "torch.Tensor":
    """Return r = a - b + c, or r alone, in float32 or wider."""
    import torch

    wide = [term.to(torch.promote_types(term.dtype, torch.float32)) for term in terms]
    return wide[0] if len(wide) == 1 else wide[0] - wide[1] + wide[2]
