"""Checks of the arguments of kernels over several states, and the table of the states' addresses."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.arguments import DTYPES, describe

Hidden = torch.Tensor | Sequence[torch.Tensor]


def checked(name: str, hidden: Hidden, mask: torch.Tensor | None) -> list[torch.Tensor]:
    """Return the list of states; raises ReplaceMeError, in the `name` of a kernel, on inconsistent arguments."""
    if isinstance(hidden, torch.Tensor) and hidden.ndim != 3:
        raise ReplaceMeError(f"{name}: a stack must be [L, tokens, hidden] floats, got {describe(hidden)}")
    states = list(hidden)
    if not states:
        raise ReplaceMeError(f"{name}: at least one state is needed, got none")
    first = states[0]
    for k, state in enumerate(states):
        if state.ndim != 2 or state.dtype not in DTYPES:
            raise ReplaceMeError(f"{name}: state {k} must be [tokens, hidden] floats, got {describe(state)}")
        if (state.shape, state.dtype) != (first.shape, first.dtype):
            raise ReplaceMeError(f"{name}: state {k} must be {describe(first)} as state 0, got {describe(state)}")
        if state.device != first.device:
            raise ReplaceMeError(f"{name}: state {k} is on {state.device}, state 0 on {first.device}")
    if mask is not None:
        if mask.shape != first.shape[:1] or mask.dtype != torch.bool:
            raise ReplaceMeError(f"{name}: mask must be {len(first)} bools, got {describe(mask)}")
        if mask.device != first.device:
            raise ReplaceMeError(f"{name}: mask is on {mask.device}, the states on {first.device}")
    return states


def unit_columns(states: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the states, copied where their columns do not lie side by side."""
    return [state if state.stride(1) == 1 else state.contiguous() for state in states]


def places(states: list[torch.Tensor]) -> tuple[torch.Tensor, int]:
    """Return the table [2, L] of each state's distance from the first one and row stride, in units, and the elements of
    a unit.

    A unit is as many elements, 16 bytes at most, as divide all of these and the columns, so that loads can be wide.
    """
    size = states[0].element_size()
    starts = [(state.data_ptr() - states[0].data_ptr()) // size for state in states]
    strides = [state.stride(0) for state in states]
    unit = 16 // size
    while any(number % unit for number in (*starts, *strides, states[0].shape[1])):
        unit //= 2
    return _table(tuple(number // unit for number in (*starts, *strides)), states[0].device), unit


@lru_cache(maxsize=64)
def _table(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the numbers on the device, cached because batches of one shape often lie in the same places."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)
