"""Find what a block with several residual streams (hyper-connections) adds to them last, and by which weights.

A module writes to the streams if a change of its output [tokens, hidden] changes each stream by the same, times a
weight of token and stream. These weights [tokens, streams] have to be what a module of the block puts out, so that they
are known wherever the block runs.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from replaceme.probing.blocks import Call
from replaceme.probing.changes import EXACT, Seen, close, tried

Spread = tuple[str, int]  # a module, and the number of its output


def into_streams(call: Call, seen: Mapping[str, Seen]) -> tuple[Call, dict[str, tuple[float, Spread]]]:
    """Return the call with its number of streams, and the modules whose output the block adds to each of them, with
    the source of the weights; without any where it has one stream, or nothing puts its weights out.
    """
    found: dict[str, tuple[float, Spread]] = {}
    state, streams = call.again(), 1
    for name, one in seen.items():
        width, several = one.output.shape[-1], state.numel() // max(one.output.numel(), 1)
        if several < 2 or several * one.output.numel() != state.numel() or state.shape[-1] % width:
            continue
        change, difference = tried(call, name, one, state)
        change, difference = change.reshape(-1, 1, width), difference.reshape(-1, several, width)
        weights = (difference * change).sum(-1) / change.square().sum(-1)
        if float(weights.norm()) > 1e-6 and close(difference, weights[..., None] * change, EXACT):
            spread = _source(seen, weights)
            if spread is not None:
                found[name], streams = (1.0, spread), several
    return replace(call, streams=streams), found


def _source(seen: Mapping[str, Seen], weights: torch.Tensor) -> Spread | None:
    """Return the module that puts out the weights [tokens, streams], and the number of its output; None without."""
    outputs = ((name, k, value) for name, one in seen.items() for k, value in enumerate(one.outputs))
    for name, number, value in outputs:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        alike = value.numel() == weights.numel() and value.shape[-1] == weights.shape[-1]
        if alike and close(value.reshape(weights.shape), weights, EXACT):
            return name, number
    return None
