"""Make a block of a loaded model run another function for a while."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn


def skipped(block: "nn.Module", family: Family):
    """Make a block pass its input on, and what it was handed beside it; returns a function that undoes it."""

    def hand_on(hidden_states: "torch.Tensor", *args: Any, **kwargs: Any) -> "torch.Tensor":
        if not family.tuples:
            return hidden_states
        found = [hidden_states, *[None] * (family.tuples - 1)]
        if family.handed:
            name, number = family.handed
            found[number] = kwargs.get(name)
        return tuple(found)

    return running_instead(block, hand_on)


def silenced(module: "nn.Module") -> "Callable[[], None]":
    """Make a module put out zeros; returns a function that undoes it."""

    def hook(_: "nn.Module", inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0].new_zeros(output[0].shape), *output[1:])
        return output.new_zeros(output.shape)

    return module.register_forward_hook(hook).remove


def running_instead(block: "nn.Module", forward: "Callable[..., Any]") -> "Callable[[], None]":
    """Make a block run another forward; returns a function that undoes it."""
    own = vars(block).get("forward")  # of the class where None, which stays so: a block may be copied
    block.forward = forward

    def undo() -> None:
        if own is None:
            del block.forward
        else:
            block.forward = own

    return undo
