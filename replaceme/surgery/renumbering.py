"""Adapt the weights of blocks that compute with their own number when they move to another.

GPT-2 with `scale_attn_by_inverse_layer_idx` divides the attention scores q k of block n by n + 1. As block m it has the
same scores with queries, and so with their weights and biases, times (m + 1) / (n + 1). Everything else that depends on
the number is in config.json (see `models.pruned_config`); tests/models/test_families.py reads transformers' code for
more.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from replaceme.core.places import Span, kept_halves

if TYPE_CHECKING:
    import torch

    from replaceme.models.checkpoints import Checkpoint
    from replaceme.surgery.edits import Edit


def with_new_numbers(
    checkpoint: "Checkpoint", groups: Sequence[Span], edits: "Mapping[str, Edit]"
) -> "dict[str, Edit]":
    """Return the edits of a cut's tensors, followed by those of the renumbered blocks."""
    found, family = dict(edits), checkpoint.family
    if family.numbered is None or not checkpoint.config.get(family.numbered):
        return found
    for new, (old, _) in enumerate(kept_halves(checkpoint.num_blocks, groups)):
        if old is None or new == old:
            continue
        weight = f"{family.blocks}.{old}.{family.query}"
        for name in (weight, weight.removesuffix("weight") + "bias"):
            scaled = _scaled_queries(checkpoint.hidden_size, (new + 1) / (old + 1))
            found[name] = both(found[name], scaled) if name in found else scaled
    return found


def both(first: "Edit", second: "Edit") -> "Edit":
    """Return an edit that applies one edit after another."""
    return lambda tensor: second(first(tensor))


def _scaled_queries(width: int, factor: float) -> "Edit":
    """Return an edit that scales the first `width` outputs, on the last axis of a weight or bias, rounded once."""

    def edit(given: "torch.Tensor") -> "torch.Tensor":
        scaled = given.clone()
        scaled[..., :width] = (given[..., :width].double() * factor).to(given.dtype)
        return scaled

    return edit
