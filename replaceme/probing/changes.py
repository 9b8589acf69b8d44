"""Change what a module of a block puts out, and compare what comes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from replaceme.probing.blocks import Call, first_of

EXACT = 2e-4  # of the size of a change, in float32


@dataclass
class Seen:
    """Arguments of a module's call, and its outputs, of which the first is a tensor."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Any, ...]

    @property
    def output(self) -> torch.Tensor:
        """First output."""
        return self.outputs[0]


def tried(call: Call, name: str, one: Seen, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random change of what a module puts out, and by what the block's output `state` then changes."""
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(one.output.shape, generator=generator) * max(float(one.output.std()), 1e-3)
    with changed(call.block.get_submodule(name), change):
        return change, call.again() - state


@contextmanager
def changed(module: nn.Module, change: torch.Tensor) -> Iterator[None]:
    """Let a module put out more by `change`."""

    def add(_: nn.Module, inputs: Any, output: Any) -> Any:
        found = first_of(output) + change.to(first_of(output).dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def close(one: torch.Tensor, other: torch.Tensor, exact: float = EXACT) -> bool:
    """Return whether two tensors differ by no more than `exact` of the other's size."""
    return float((one - other).norm()) <= exact * max(float(other.norm()), 1e-12)
