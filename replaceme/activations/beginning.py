"""Models that begin in the middle, with a stored state, so that masks and positions are their own.

The model itself is called: the blocks before the first pass their input on, and that one is given the state.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from replaceme.activations.hooks import skipped
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn


@contextmanager
def beginning_at(
    blocks: "Sequence[nn.Module]", family: Family, first: int, state: "torch.Tensor | None"
) -> Iterator[None]:
    """Within it a model begins with block `first`, on a state [samples, tokens, hidden] (None: its own first input)."""
    with ExitStack() as undone:
        for block in blocks[:first]:
            undone.callback(skipped(block, family))
        undone.enter_context(given(blocks[first], state, str(next(blocks[first].parameters()).device)))
        yield


@contextmanager
def given(block: "nn.Module", state: "torch.Tensor | None", device: str) -> Iterator[None]:
    """Feed a block a stored state within this context, whatever its arguments; None: the model's own first input."""
    if state is None:
        yield
        return
    on_device = state.to(device, non_blocking=True)

    def replaced(module: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (on_device, *args[1:]), kwargs

    handle = block.register_forward_pre_hook(replaced, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
