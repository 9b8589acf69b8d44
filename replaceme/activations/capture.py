"""Run forward passes that keep only the tensors in demand and stop after the last block in use.

Hooks on the blocks of a base model (no head, no logits) collect `hidden_states[k]`, the output of block k before any
final norm, and `mlp_output[k]`, what its MLP adds to the residual stream. In the middle of block k (see `places`) the
state is `hidden_states[k - 0.5]`, and what its attention adds before that takes the MLP's part: `mlp_output[k - 0.5]`.
Values on masked positions are meaningless and are never read.
Where blocks keep several residual streams, a state has all of them, as the class holds them, and `mlp_output[k]` is
[samples, tokens, streams, hidden]: what the MLP puts out times the weight of each token and stream.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import reduce
from inspect import signature
from operator import or_
from typing import TYPE_CHECKING, Any, Protocol

from replaceme.calibration.images import Images
from replaceme.calibration.samples import Samples
from replaceme.calibration.sequences import Pictured
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Place, block_of, in_middle
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass
class Activations:
    """Tensors of one batch, [samples, tokens, hidden] each, or with an axis of streams, and its mask [samples,
    tokens].
    """

    mask: "torch.Tensor"
    hidden_states: dict[Place, "torch.Tensor"] = field(default_factory=dict)
    mlp_output: dict[Place, "torch.Tensor"] = field(default_factory=dict)
    mlp_input: dict[Place, "torch.Tensor"] = field(default_factory=dict)  # normalised, as the MLP's first layers get it
    # of the down projection [..., intermediate], or the output projection [..., heads]
    down_input: dict[Place, "torch.Tensor"] = field(default_factory=dict)
    unnormed: dict[Place, "torch.Tensor"] = field(default_factory=dict)  # states before the norm that ends a block

    def stream(self, state: Place, added: "torch.Tensor") -> "torch.Tensor":
        """Return the residual stream at a state, of which M is a part, in the shape of `added`: before a norm that ends
        a block, if one does.
        """
        found = self.unnormed.get(state, self.hidden_states[state])
        return found if found.shape == added.shape else found.reshape(added.shape)


@dataclass(frozen=True)
class Wanted:
    """The numbers of states that are kept, and of those before which MLP outputs and inputs, and inputs of the down
    projection are.
    """

    hidden_states: frozenset[Place]
    mlp_output: frozenset[Place] = frozenset()
    mlp_input: frozenset[Place] = frozenset()
    down_input: frozenset[Place] = frozenset()

    @property
    def last(self) -> int:
        """Last block that has to run."""
        return block_of(max(self.hidden_states | self.mlp_output | self.mlp_input | self.down_input))

    def within(self, block: int) -> "Wanted":
        """Return the part of the demand that a block meets."""
        return Wanted(*(frozenset(one for one in getattr(self, name) if block_of(one) == block) for name in STORES))

    def __or__(self, other: "Wanted") -> "Wanted":
        """Return the union of two demands."""
        return Wanted(*(getattr(self, store) | getattr(other, store) for store in STORES))


PIXELS = "pixel_values"  # the argument of a transformers model that holds pictures
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
    with ExitStack() as hooks, torch.inference_mode(not gradients):
        for undo in _keeping(kept, family.block_modules(model), family, wanted):
            hooks.callback(undo)
        with suppress(_LastBlockReached):
            model(**model_inputs(model, batch))
    return kept


def _keeping(
    kept: Activations, blocks: "nn.ModuleList", family: Family, wanted: Wanted
) -> Iterator[Callable[[], None]]:
    """Let blocks put their `wanted` tensors into `kept`, and the last one end the pass; yields what undoes it."""

    weights: dict[Place, torch.Tensor] = {}  # of each token and stream

    def shaped(rows: "torch.Tensor") -> "torch.Tensor":
        # some MLPs are given all tokens in one row
        return rows.to(kept.mask.device).reshape(*kept.mask.shape, rows.shape[-1])

    def keep_state(state: Place):
        def hook(module, inputs, output):
            kept.hidden_states[state] = (output[0] if isinstance(output, tuple) else output).to(kept.mask.device)

        return hook

    def keep_mlp_output(state: Place, factor: float):
        def hook(module, inputs, output):
            added = shaped(family.added(output[0] if isinstance(output, tuple) else output, factor))
            if family.spread:
                added = weights[state].to(added.dtype).unsqueeze(-1) * added.unsqueeze(-2)
            kept.mlp_output[state] = kept.mlp_output[state] + added if state in kept.mlp_output else added

        return hook

    def keep_weights(state: Place):
        def hook(module, inputs, output):
            weights[state] = shaped(output[family.spread[1]] if isinstance(output, tuple) else output)

        return hook

    def keep_input(store: dict, state: Place):
        def hook(module, inputs):
            store[state] = shaped(inputs[0])

        return hook

    def leave(module, inputs, output):
        raise _LastBlockReached

    for state in wanted.mlp_output:
        of_state, block = family.carrying(state + 1), blocks[block_of(state)]
        if family.spread:
            yield block.get_submodule(family.spread[0]).register_forward_hook(keep_weights(state)).remove
        for module in of_state.mlp_modules(block):
            yield module.register_forward_hook(keep_mlp_output(state, of_state.factor(block))).remove
    for state in wanted.mlp_input:
        module = family.gate_projection(blocks[block_of(state)])
        yield module.register_forward_pre_hook(keep_input(kept.mlp_input, state)).remove
    for state in wanted.down_input:
        module = family.carrying(state + 1).down_projection(blocks[block_of(state)])
        yield module.register_forward_pre_hook(keep_input(kept.down_input, state)).remove
    for state in wanted.hidden_states:
        block = blocks[block_of(state)]
        if in_middle(state):
            module = block.get_submodule(family.attention.middle)
            yield module.register_forward_pre_hook(keep_input(kept.hidden_states, state)).remove
            continue
        yield block.register_forward_hook(keep_state(state)).remove
        if family.closing_norm is not None:
            norm = block.get_submodule(family.closing_norm)
            yield norm.register_forward_pre_hook(keep_input(kept.unnormed, state)).remove
    yield blocks[wanted.last].register_forward_hook(leave).remove


def put_out(model: "nn.Module", batch: Tokens) -> "torch.Tensor":
    """Return what a model puts out first for the unmasked tokens of a batch, [tokens, width]: logits or, without a
    head, its last states; of a classifier its scores [samples, classes].
    """
    found = model(**model_inputs(model, batch))[0]
    return found[batch.mask.to(found.device)] if found.shape[:2] == batch.mask.shape else found


def model_inputs(model: "nn.Module", batch: Samples) -> dict[str, Any]:
    """Return the arguments of a transformers model's call for a batch."""
    parameter = next(model.parameters())
    if isinstance(batch, Images):
        return {PIXELS: batch.pixels.to(parameter.device, parameter.dtype)}
    taken = signature(model.forward).parameters
    # others may be in a class's **kwargs
    if isinstance(batch, Pictured) and PIXELS not in taken:
        raise ReplaceMeError(f"calibration: {type(model).__name__} takes no pictures; calibrate without `pictures`")
    pictures = {
        name: one.to(parameter.device, model.dtype if one.is_floating_point() else one.dtype)
        for name, one in batch.beside.items()
    }
    given = {**placed(batch, parameter.device), **pictures, "use_cache": False}
    return {name: value for name, value in given.items() if name in taken or name != "position_ids"}


def placed(batch: Tokens, device: "torch.device") -> dict[str, Any]:
    """Return the ids and mask of a batch on a device, and positions where a sequence is padded on the left.

    The positions count real tokens only, so that this padding moves nothing. Where there is none, classes number the
    tokens in the same way, or in one of their own: RoBERTa's begin with 2.
    """
    mask = batch.mask.to(device).long()
    given = {"input_ids": batch.input_ids.to(device), "attention_mask": mask}
    if batch.mask[:, 0].all():
        return given
    return {**given, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def trimmed(batch: Samples) -> Samples:
    """Return the batch without the columns in which every sequence is padded; images have none."""
    if isinstance(batch, Images):
        return batch
    used = batch.mask.any(0).nonzero()
    if len(used) == 0:
        raise ReplaceMeError("calibration: a batch holds padding only; remove empty texts")
    columns = slice(int(used[0]), int(used[-1]) + 1)
    return batch.columns(columns)


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
