"""The cache of a language model: keys, values and states that it keeps for the next token, whatever its blocks are."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from replaceme.models.sizes import ITEM_BYTES

if TYPE_CHECKING:
    import torch
    from torch import nn

# what classes of transformers raise that do not run so
UNABLE = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
NAMES = ("past_key_values", "cache_params")  # by which models put out their cache and take it; Mamba the second


def cache_of(output: Any) -> dict[str, Any]:
    """Return the cache that a model has put out, by the name under which it takes it with the next token."""
    found = {name: getattr(output, name, None) for name in NAMES}
    return {name: cache for name, cache in found.items() if cache is not None}


def cache_to_give(model: "nn.Module", ids: "torch.Tensor") -> dict[str, Any]:
    """Return an empty cache for a model that puts none out but fills one that it is given, as RecurrentGemma does, and
    nothing for others, which make their own; ids [batch, tokens] are run to see which it is.
    """
    return {} if cache_of(model(ids, use_cache=True)) else _empty(model)


def cache_bytes(model: "nn.Module", ids: "torch.Tensor", dtype: str) -> int:
    """Return the bytes of the cache after a pass over ids [batch, tokens].

    `dtype` names the type of the weights where the model is used, and so of keys and values; a tensor of another type
    than the weights at hand (float32 states of a state space beside bfloat16) counts in its own.
    Linear attentions and the like have states of one size, sliding windows grow until they are full, and a block
    without an attention has nothing.
    """
    import torch

    with torch.inference_mode():
        tensors = _tensors(_kept_after(model, ids), set())
    own = next(model.parameters()).dtype
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


def _kept_after(model: "nn.Module", ids: "torch.Tensor") -> list[Any]:
    """Return what a model keeps after a pass: the cache that it puts out; of one that puts none out (`cache_to_give`),
    the one that it fills and the tensors that its modules have set as attributes.
    """
    if found := cache_of(model(ids, use_cache=True)):
        return list(found.values())
    before, given = _held_by_modules(model), _empty(model)
    model(ids, use_cache=True, **given)
    states = [one for key, one in _held_by_modules(model).items() if one is not before.get(key)]
    return [*given.values(), *states]


def _empty(model: "nn.Module") -> dict[str, Any]:
    from transformers.cache_utils import DynamicCache

    return {NAMES[0]: DynamicCache(config=model.config)}


def _held_by_modules(model: "nn.Module") -> "dict[tuple[nn.Module, str], torch.Tensor]":
    """Return the tensors that modules have as plain attributes, by module and name."""
    import torch

    found = ((module, name, value) for module in model.modules() for name, value in vars(module).items())
    return {(module, name): value for module, name, value in found if isinstance(value, torch.Tensor)}


def _tensors(value: Any, seen: set[int]) -> "Iterator[torch.Tensor]":
    """Yield the tensors of more than a number in lists, dicts and attributes of objects, each once."""
    import torch

    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if value.dim() > 1:
            yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one, seen)
    elif isinstance(value, dict) or hasattr(value, "__dict__"):
        content = value if isinstance(value, dict) else vars(value)
        for one in content.values():
            yield from _tensors(one, seen)
