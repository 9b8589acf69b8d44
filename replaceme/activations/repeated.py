"""Run several passes over the same text, and keep of the first one what memory has room for."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from replaceme.activations.capture import STORES, Activations, Wanted, capture
from replaceme.calibration.tokens import Tokens
from replaceme.core.memory import free_memory
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.25  # of the free memory, for what is kept


def repeated(
    model: "nn.Module", family: Family, tokens: Tokens, batch_size: int, wanted: Wanted, reserved: int = 0
) -> Callable[[str], Iterator[Activations]]:
    """Return passes that yield the `wanted` tensors of all batches each time they are called, with a description.

    The first batches of the first pass are kept for the others, which run the rest anew, with the same bits. They take
    at most SHARE of the memory that is free on the model's device, but for `reserved` bytes; nothing of a streamed
    model, which has too little memory. Errors as in `capture`.
    """
    kept: list[Activations] = []
    device = next(model.parameters()).device.type
    room = 0 if hasattr(model, "streamed") else SHARE * (free_memory(device) - reserved)

    def passes(description: str) -> Iterator[Activations]:
        nonlocal room
        yield from kept[:]
        batches = progress(tokens.batches(batch_size)[len(kept) :], description, unit="batch")
        for activations in capture(model, family, batches, wanted):
            room -= _bytes(activations)
            if room > 0:  # from the first one that it does not hold on, less than nothing is left
                kept.append(activations)
            yield activations

    return passes


def _bytes(activations: Activations) -> int:
    """Return the size of a batch's tensors."""
    return sum(tensor.nbytes for store in STORES for tensor in getattr(activations, store).values())
