"""Run several passes over the same text, and keep of the first one what memory has room for."""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from replaceme.activations.capture import STORES, Activations, Wanted, capture
from replaceme.calibration.tokens import Tokens
from replaceme.core.memory import free_memory
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.25  # of the free memory, for what is kept


class Repeated:
    """Passes that yield the `wanted` tensors of all batches each time they are called, with a description.

    The first batches of the first pass are kept for the others, which run the rest anew, with the same bits. They take
    at most SHARE of the memory that is free on the model's device, but for `reserved` bytes; nothing of a streamed
    model, which has too little memory. Errors as in `capture`.
    """

    def __init__(
        self, model: "nn.Module", family: Family, tokens: Tokens, batch_size: int, wanted: Wanted, reserved: int = 0
    ) -> None:
        self._run = partial(capture, model, family, wanted=wanted)
        self._batches = tokens.batches(batch_size)
        self._kept: list[Activations] = []
        device = next(model.parameters()).device.type
        self._room = 0 if hasattr(model, "streamed") else SHARE * (free_memory(device) - reserved)

    def __call__(self, description: str) -> Iterator[Activations]:
        """Yield the tensors of each batch."""
        yield from self._kept[:]
        batches = progress(self._batches[len(self._kept) :], description, unit="batch")
        for activations in self._run(batches):
            self._room -= _bytes(activations)
            if self._room > 0:  # from the first one that it does not hold on, less than nothing is left
                self._kept.append(activations)
            yield activations

    def forget(self) -> None:
        """Free what is kept; passes after it run all batches anew and keep none."""
        self._kept, self._room = [], 0


def _bytes(activations: Activations) -> int:
    """Return the size of a batch's tensors."""
    return sum(tensor.nbytes for store in STORES for tensor in getattr(activations, store).values())
