"""Removed blocks merged into their carrier by adding differences of weights: LaCo (arXiv 2402.11187).

Every weight of attention and MLP of block c = start - 1, with its bias, becomes `W_c + sum_k (W_k - W_c)`, k the
removed blocks start .. end-1. Norms stay those of c. Nothing is fitted and no text is read.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from replaceme.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.changes import Edit
    from replaceme.checkpoints import Checkpoint
    from replaceme.transforms import Transform

COLLAPSE = "collapse"


def fit_collapse(hidden_size: int) -> "Transform":
    """What stands for the merge among the transforms: it has no map of its own (`matrix` is I)."""
    import torch

    from replaceme.transforms import Transform

    return Transform(torch.eye(hidden_size, dtype=torch.float64), {"solver": "collapse"}, COLLAPSE)


def merged(carrier: "torch.Tensor", removed: "Iterable[torch.Tensor]") -> "torch.Tensor":
    """`W_c + sum_k (W_k - W_c)` in float64, rounded once to the type of W_c."""
    base = carrier.double()
    total = base.clone()
    for other in removed:
        total += other.double() - base
    return total.to(carrier.dtype)


def collapsing(checkpoint: "Checkpoint", start: int, end: int) -> "dict[str, Edit]":
    """What happens to which tensors of the carrier; raises ReplaceMeError where the blocks are not of one kind."""
    shapes = [_merging({name: shape for name, (_, shape, _) in _of(checkpoint, block).items()}) for block in
              range(start - 1, end)]  # fmt: skip
    if any(one != shapes[0] for one in shapes):
        raise ReplaceMeError(
            f"{checkpoint.folder}: blocks {start - 1} .. {end - 1} are not of one kind, and cannot be merged; take "
            "another cut, or another transform"
        )
    blocks = checkpoint.family.blocks

    def edit(name: str) -> "Edit":
        others = [f"{blocks}.{block}.{name}" for block in range(start, end)]
        return lambda given: merged(given, map(checkpoint.tensor, others))

    return {f"{blocks}.{start - 1}.{name}": edit(name) for name in shapes[0]}


def collapsed(blocks: "nn.ModuleList", start: int, end: int) -> Callable[[], None]:
    """Give a loaded carrier the merged weights; returns what gives it its own back."""
    import torch

    held = [dict(block.named_parameters()) for block in blocks[start - 1 : end]]
    kept = {name: held[0][name].detach().clone() for name in _merging({n: p.shape for n, p in held[0].items()})}

    def put(values: "dict[str, torch.Tensor]") -> None:
        with torch.no_grad():
            for name, value in values.items():
                held[0][name].copy_(value)

    put({name: merged(kept[name], (other[name] for other in held[1:])) for name in kept})
    return lambda: put(kept)


def _of(checkpoint: "Checkpoint", block: int) -> dict[str, tuple]:
    """The tensors of a block, by their names in it."""
    prefix = f"{checkpoint.family.blocks}.{block}."
    return {name.removeprefix(prefix): held for name, held in checkpoint.tensors.items() if name.startswith(prefix)}


def _merging(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The weights that are merged, of the shapes of a block's tensors: matrices, and the biases beside them."""
    matrices = {name for name, shape in shapes.items() if len(shape) > 1}
    biases = {name.removesuffix("weight") + "bias" for name in matrices}
    return {name: tuple(shape) for name, shape in shapes.items() if name in matrices or name in biases}
