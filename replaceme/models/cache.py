"""The key-value cache of a language model: its bytes, by a run of the model itself, whatever its blocks are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from replaceme.models.sizes import ITEM_BYTES

if TYPE_CHECKING:
    import torch
    from torch import nn

# what classes of transformers raise that do not run so
UNABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def cache_bytes(model: "nn.Module", ids: "torch.Tensor", dtype: str) -> int:
    """Return the bytes of the cache after a pass over ids [batch, tokens].

    `dtype` names the type of the weights where the model is used, and so of keys and values; a tensor of another type
    than the weights at hand (float32 states of a state space beside bfloat16) counts in its own.
    Linear attentions and the like have states of one size, sliding windows grow until they are full, and a block
    without an attention has nothing.
    """
    import torch

    with torch.inference_mode():
        cache = getattr(model(ids, use_cache=True), "past_key_values", None)
    own = next(model.parameters()).dtype
    tensors = _tensors([vars(layer) for layer in getattr(cache, "layers", ())])
    return round(sum(one.numel() * (ITEM_BYTES.get(dtype, 4) if one.dtype == own else one.itemsize) for one in tensors))


def cache_bytes_per_token(model: "nn.Module", dtype: str) -> int | None:
    """Return the bytes by which the cache of one sequence grows with a token, until sliding windows are full; None
    where transformers cannot run the model with a cache.

    Of attentions that is 2 (keys and values) x heads of these x their size x bytes of a value, added over blocks.
    """
    import torch

    ids = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    try:
        return cache_bytes(model, ids, dtype) - cache_bytes(model, ids[:, :1], dtype)
    except UNABLE:
        return None


def _tensors(value: Any) -> "Iterator[torch.Tensor]":
    """Yield the tensors of more than a number in lists and dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.dim() > 1:
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
