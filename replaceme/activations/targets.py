"""Define the rows m and the target r of a transform, `m T ~ r`, by its placement, and the weights of the rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from replaceme.activations.capture import Activations, Wanted
from replaceme.config.placement import Regression
from replaceme.core.places import Place, Span, carrier_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.models.family import Family


def wanted_by(regression: Regression, groups: Sequence[Span]) -> Wanted:
    """Return the activations to capture for every [start, end)."""
    wanted = regression.place.wanted(groups)
    if regression.recycle is not None:
        wanted |= {"mlp_input": frozenset(start - 1 for start, _ in groups)}
    return Wanted(**wanted)


def rows_of(
    regression: Regression, activations: Activations, start: Place, end: Place, recycled: "Recycled | None" = None
) -> tuple["torch.Tensor", tuple["torch.Tensor", ...]]:
    """Return (m, the terms (a, b, c) of r = a - b + c, or (r,)) of a batch, [samples, tokens, width] each; with several
    residual streams [samples, tokens, streams, width].
    """
    return regression.place.rows(activations, (start, end), recycled)


def unmasked_rows_of(
    regression: Regression, activations: Activations, start: Place, end: Place, recycled: "Recycled | None" = None
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Return (m [tokens, width], r [tokens, hidden]) of the unmasked tokens of a batch."""
    m, terms = rows_of(regression, activations, start, end, recycled)
    return m[activations.mask], formed(tuple(term[activations.mask] for term in terms))


def width_of(regression: Regression, model: "nn.Module", family: "Family", start: Place) -> int:
    """Return the width of m for a cut that begins at `start`; that of the carrier is looked up where it counts."""
    hidden = model.config.get_text_config().hidden_size
    if regression.place.square:
        return hidden
    carrier = family.block_modules(model)[carrier_of(start)]
    return regression.place.width(hidden, family.carrying(start).intermediate_size(carrier))


def weights_of(regression: Regression, terms: tuple["torch.Tensor", ...]) -> "torch.Tensor | None":
    """Return the weight of each token [samples, tokens], float32; None where all count alike."""
    if regression.weighting == "uniform":
        return None
    energy = formed(terms).square().flatten(2).sum(-1)  # of all streams of a token
    return (1 / energy).where(energy > 0, 0.0)  # a row without a direction asks for nothing


def formed(terms: tuple["torch.Tensor", ...]) -> "torch.Tensor":
    """Return r = a - b + c, or r alone, in float32 or wider."""
    import torch

    wide = [term.to(torch.promote_types(term.dtype, torch.float32)) for term in terms]
    return wide[0] if len(wide) == 1 else wide[0] - wide[1] + wide[2]
