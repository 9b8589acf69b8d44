"""Find rows and columns of a block's linear layers that belong together, by the dependency graph of torch-pruning.

A row of one layer's weight feeds columns of others, sometimes through operations that tie it to rows of more layers
(the channels of a head of the keys to those of the values, of the queries that share it, and to columns of the output
projection; the gate of an MLP channel to its up projection and the column of its down projection). Such a group is
taken out whole or not at all.
"""

import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replaceme.fitting.passes import Passes

EXAMPLE = 8  # tokens of the forward pass that is traced
AXES = ("rows", "columns")


@dataclass(frozen=True)
class Side:
    """The rows (axis 0) or columns (axis 1) of a linear layer of a block, `indices` [groups, of each group]."""

    layer: str
    axis: int
    indices: torch.Tensor

    def kept(self, groups: torch.Tensor) -> torch.Tensor:
        """Return the indices of some groups, ascending."""
        return self.indices[groups].flatten().sort().values


def coupled_groups(passes: "Passes", block: int, roots: Mapping[str, tuple[str, int]]) -> dict[str, list[Side]]:
    """Return for each root (name: layer of the block, number of groups of its rows) the sides of its groups, its own
    first.

    The graph says which sides there are. Which indices of a side a group has follows from their order: heads and
    channels lie one after another, those of queries by the keys that they share, which attention in one operation hides
    from the graph. Raises ReplaceMeError where that cannot be.
    """
    import torch_pruning

    module = passes.family.block_modules(passes.model)[block]
    names = {layer: name for name, layer in module.named_modules()}
    found: dict[str, list[Side]] = {}
    with _traceable(passes, module) as run:
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(module, torch.zeros(1), forward_fn=lambda *_: run(), verbose=False)
        for kind, (root, count) in roots.items():
            layer = module.get_submodule(root)
            rows = list(range(layer.out_features))
            group = graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, rows)
            linear = [one.dep for one in group if isinstance(one.dep.layer, nn.Linear)]
            axes = [int(one.pruning_fn == torch_pruning.prune_linear_in_channels) for one in linear]
            found[kind] = [
                _side(names[one.layer], axis, one.layer.weight.shape[axis], count)
                for one, axis in zip(linear, axes, strict=True)
            ]
            if 1 not in axes or len({(one.layer, one.axis) for one in found[kind]}) != len(linear):
                raise ReplaceMeError(f"llm_pruner: no groups of {kind} found from {root}; use another method")
    return found


def _side(layer: str, axis: int, size: int, count: int) -> Side:
    if size % count:
        raise ReplaceMeError(f"llm_pruner: the {size} {AXES[axis]} of {layer} are not of {count} groups alike")
    return Side(layer, axis, torch.arange(size).reshape(count, -1))


@contextmanager
def _traceable(passes: "Passes", block: nn.Module) -> "Iterator[Any]":
    """Give a function that runs the block alone on its input in a forward pass of a few tokens, with gradients."""
    given: dict[str, Any] = {}

    class Reached(Exception):
        pass

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given.update(args=args, kwargs=kwargs)
        raise Reached

    ids = passes.tokens.input_ids[0][passes.tokens.mask[0]][None, :EXAMPLE].to(passes.device)
    handle = block.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with torch.no_grad():
            passes.model(ids, use_cache=False)
    except Reached:
        pass
    finally:
        handle.remove()
    block.requires_grad_(True)
    try:
        with torch.enable_grad(), _unrotated(block):
            yield lambda: block(*given["args"], **given["kwargs"])
    finally:
        block.requires_grad_(False)


@contextmanager
def _unrotated(block: nn.Module) -> "Iterator[None]":
    """Leave positions unrotated in queries and keys within the block: rotation ties only channels of a head, in a
    circle.
    """
    architecture = sys.modules[type(block.self_attn).__module__]
    rotate = architecture.apply_rotary_pos_emb
    architecture.apply_rotary_pos_emb = lambda queries, keys, *_, **__: (queries, keys)
    try:
        yield
    finally:
        architecture.apply_rotary_pos_emb = rotate
