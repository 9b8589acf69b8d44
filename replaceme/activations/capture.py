"""Run forward passes that keep only the tensors in demand and stop after the last block in use.

Hooks on the blocks of a base model (no head, no logits) collect `hidden_states[k]`, the output of block k before any
final norm, and `mlp_output[k]`, what its MLP adds to the residual stream. Values on masked positions are meaningless
and are never read.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import reduce
from inspect import signature
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol

from replaceme.calibration.images import Images
from replaceme.calibration.samples import Samples
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Activations:
    """Tensors of one batch, [samples, tokens, hidden] each, and its mask [samples, tokens]."""

    mask: "torch.Tensor"
    hidden_states: dict[int, "torch.Tensor"] = field(default_factory=dict)
    mlp_output: dict[int, "torch.Tensor"] = field(default_factory=dict)
    mlp_input: dict[int, "torch.Tensor"] = field(default_factory=dict)  # normalised, as the MLP's first layers get it
    down_input: dict[int, "torch.Tensor"] = field(default_factory=dict)  # of the down projection, [..., intermediate]


@dataclass(frozen=True)
class Wanted:
    """The block numbers whose hidden states, MLP outputs and inputs, and inputs of the down projection are kept."""

    hidden_states: frozenset[int]
    mlp_output: frozenset[int] = frozenset()
    mlp_input: frozenset[int] = frozenset()
    down_input: frozenset[int] = frozenset()

    @property
    def last(self) -> int:
        """Last block that has to run."""
        return max(self.hidden_states | self.mlp_output | self.mlp_input | self.down_input)

    def __or__(self, other: "Wanted") -> "Wanted":
        """Return the union of two demands."""
        return Wanted(*(getattr(self, store) | getattr(other, store) for store in STORES))


STORES = tuple(Wanted.__dataclass_fields__)  # what Activations have by block


class Collector(Protocol):
    """An object that accumulates results from the batches of a forward pass."""

    @property
    def wanted(self) -> Wanted:
        """Tensors that it needs of a batch."""

    def add(self, activations: Activations) -> None:
        """Take in the tensors of a batch."""


class _LastBlockReached(Exception):
    """Raised by a hook to leave the forward pass early."""


def capture(model: "nn.Module", family: Family, batches: Iterable[Samples], wanted: Wanted) -> Iterator[Activations]:
    """Run batches through a base model and yield the `wanted` tensors; raises ReplaceMeError on NaN or infinity."""
    if hasattr(model, "streamed"):
        yield from model.streamed.captured(model, family, batches, wanted)
        return
    for batch in batches:
        yield _checked(model, family, batch, wanted)  # not held here: the next batch needs its memory


def collect(model: "nn.Module", family: Family, batches: Iterable[Samples], collectors: Sequence[Collector]) -> None:
    """Run one forward pass and give every collector the tensors that it needs; errors as in `capture`."""
    for activations in capture(model, family, batches, reduce(or_, (one.wanted for one in collectors))):
        for collector in collectors:
            collector.add(activations)
        del activations  # before the next batch's are made


def _checked(model: "nn.Module", family: Family, batch: Samples, wanted: Wanted) -> Activations:
    activations = forward(model, family, batch, wanted)
    if not finite(activations):
        raise ReplaceMeError(_name_the_block(model, family, batch, wanted.last))
    return activations


def forward(model: "nn.Module", family: Family, batch: Samples, wanted: Wanted, gradients: bool = False) -> Activations:
    """Run one batch and return its `wanted` tensors, unchecked; with `gradients` they can be trained through."""
    import torch

    batch = trimmed(batch)
    device = next(model.parameters()).device
    kept = Activations(batch.mask.to(device))  # and so is the rest, where a model is spread over several
    blocks = family.block_modules(model)

    def shaped(rows: "torch.Tensor") -> "torch.Tensor":
        return rows.to(device).reshape(*batch.mask.shape, rows.shape[-1])  # some MLPs are given all tokens in one row

    def keep_state(block: int):
        def hook(module, inputs, output):
            kept.hidden_states[block] = (output[0] if isinstance(output, tuple) else output).to(device)

        return hook

    def keep_mlp_output(block: int):
        factor = family.factor(blocks[block])

        def hook(module, inputs, output):
            added = shaped(family.added(output[0] if isinstance(output, tuple) else output, factor))
            kept.mlp_output[block] = kept.mlp_output[block] + added if block in kept.mlp_output else added

        return hook

    def keep_input(store: dict, block: int):
        def hook(module, inputs):
            store[block] = shaped(inputs[0])

        return hook

    def leave(module, inputs, output):
        raise _LastBlockReached

    with ExitStack() as hooks, torch.inference_mode(not gradients):
        for block in wanted.mlp_output:
            for module in family.mlp_modules(blocks[block]):
                hooks.callback(module.register_forward_hook(keep_mlp_output(block)).remove)
        for block in wanted.mlp_input:
            module = family.gate_projection(blocks[block])
            hooks.callback(module.register_forward_pre_hook(keep_input(kept.mlp_input, block)).remove)
        for block in wanted.down_input:
            module = family.down_projection(blocks[block])
            hooks.callback(module.register_forward_pre_hook(keep_input(kept.down_input, block)).remove)
        for block in wanted.hidden_states:
            hooks.callback(blocks[block].register_forward_hook(keep_state(block)).remove)
        hooks.callback(blocks[wanted.last].register_forward_hook(leave).remove)
        with suppress(_LastBlockReached):
            model(**model_inputs(model, batch))
    return kept


def model_inputs(model: "nn.Module", batch: Samples) -> dict[str, Any]:
    """Return the arguments of a transformers model's call for a batch."""
    parameter = next(model.parameters())
    if isinstance(batch, Images):
        return {"pixel_values": batch.pixels.to(parameter.device, parameter.dtype)}
    given = {**placed(batch, parameter.device), "use_cache": False}
    taken = signature(model.forward).parameters
    return {name: value for name, value in given.items() if name in taken or name != "position_ids"}


def placed(batch: Tokens, device: "torch.device") -> dict[str, Any]:
    """Return the ids, mask and positions of a batch on a device."""
    mask = batch.mask.to(device).long()
    # positions count real tokens only, so that padding on the left moves nothing
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": batch.input_ids.to(device), "attention_mask": mask, "position_ids": positions}


def trimmed(batch: Samples) -> Samples:
    """Return the batch without the columns in which every sequence is padded; images have none."""
    if isinstance(batch, Images):
        return batch
    used = batch.mask.any(0).nonzero()
    if len(used) == 0:
        raise ReplaceMeError("calibration: a batch holds padding only; remove empty texts")
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return Tokens(batch.input_ids[:, columns], batch.mask[:, columns])


def finite(activations: Activations) -> bool:
    """Return whether no unmasked token has NaN or infinity."""
    import torch

    tensors = [tensor for store in STORES for tensor in getattr(activations, store).values()]
    return all(bool(torch.isfinite(tensor[activations.mask]).all()) for tensor in tensors)


def _name_the_block(model: "nn.Module", family: Family, batch: Samples, last: int) -> str:
    """Run the batch again with hooks on every block, and say where NaN or infinity first appears."""
    import torch

    activations = forward(model, family, batch, Wanted(frozenset(range(last + 1))))
    for block in range(last + 1):
        if not torch.isfinite(activations.hidden_states[block][activations.mask]).all():
            return nan_error(model, f"the output of block {block}", next(model.parameters()).dtype)
    return nan_error(model, "an MLP output", next(model.parameters()).dtype)


def nan_error(model: "nn.Module", where: str, dtype: "torch.dtype") -> str:
    """Return the message for a model that puts out NaN or infinity."""
    name = getattr(model, "name_or_path", "") or "calibration"
    return f"{name}: NaN or infinity in {where} ({dtype}); check the checkpoint's weights, or set `dtype: float32`"
