"""`collapse`: removed blocks merged into their carrier by adding differences of weights, LaCo (arXiv 2402.11187).

Every weight of attention and MLP of block c = start - 1, with its bias, becomes `W_c + sum_k (W_k - W_c)`, k the
removed blocks start .. end-1, or, where the cut was chosen by merging, the sum with coefficients that belongs to it
(`laco_search`). Norms stay those of c. Nothing is fitted and no text is read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span
from replaceme.placements.placement import Placement

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform


class Collapse(Placement):
    """Merge of removed blocks as a placement; it has no map of its own."""

    name = "collapse"

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Yield the carrier has the merged weights."""
        yield collapsed(family.block_modules(base_model), *cut, coefficients_of(transform))

    def edits(self, checkpoint: "Checkpoint", placed: "Sequence[tuple[Span, Transform]]") -> "dict[str, Edit]":
        """Return the merged weights of the carriers."""
        found: dict[str, Edit] = {}
        for cut, transform in placed:
            found |= collapsing(checkpoint, *cut, coefficients_of(transform))
        return found


def coefficients_of(transform: "Transform") -> Sequence[int] | None:
    """Return the coefficients of a merge, None where they are the usual ones."""
    return transform.report.get("coefficients")


def merged(
    carrier: "torch.Tensor", removed: "Iterable[torch.Tensor]", coefficients: Sequence[int] | None = None
) -> "torch.Tensor":
    """Return `W_c + sum_k (W_k - W_c)`, or `sum_k c_k W_k` from c on, in float64, rounded once to the type of W_c."""
    base = carrier.double()
    total = base.clone() if coefficients is None else coefficients[0] * base
    for number, other in enumerate(removed, 1):
        total += other.double() - base if coefficients is None else coefficients[number] * other.double()
    return total.to(carrier.dtype)


def collapsing(
    checkpoint: "Checkpoint", start: int, end: int, coefficients: Sequence[int] | None = None
) -> "dict[str, Edit]":
    """Return the edits of the carrier's tensors; raises ReplaceMeError where the blocks are not of one kind."""
    shapes = [_merging({name: shape for name, (_, shape, _) in _of(checkpoint, block).items()}) for block in
              range(start - 1, end)]  # fmt: skip
    _check_alike(shapes, start, end, str(checkpoint.folder))
    blocks = checkpoint.family.blocks

    def edit(name: str) -> "Edit":
        others = [f"{blocks}.{block}.{name}" for block in range(start, end)]
        return lambda given: merged(given, map(checkpoint.tensor, others), coefficients)

    return {f"{blocks}.{start - 1}.{name}": edit(name) for name in shapes[0]}


def _check_alike(shapes: Sequence[dict[str, tuple[int, ...]]], start: int, end: int, where: str) -> None:
    if any(one != shapes[0] for one in shapes):
        raise ReplaceMeError(
            f"{where}: blocks {start - 1} .. {end - 1} are not of one kind, and cannot be merged; take another cut, or "
            "another transform"
        )


def collapsed(
    blocks: "nn.ModuleList", start: int, end: int, coefficients: Sequence[int] | None = None
) -> Callable[[], None]:
    """Give a loaded carrier the merged weights; returns what gives it its own back."""
    import torch

    held = [dict(block.named_parameters()) for block in blocks[start - 1 : end]]
    shapes = [_merging({name: one.shape for name, one in parameters.items()}) for parameters in held]
    _check_alike(shapes, start, end, "collapse")
    kept = {name: held[0][name].detach().clone() for name in shapes[0]}

    def put(values: "dict[str, torch.Tensor]") -> None:
        with torch.no_grad():
            for name, value in values.items():
                held[0][name].copy_(value)

    put({name: merged(kept[name], (other[name] for other in held[1:]), coefficients) for name in kept})
    return lambda: put(kept)


def _of(checkpoint: "Checkpoint", block: int) -> dict[str, tuple]:
    """Return the tensors of a block, by their names in it."""
    prefix = f"{checkpoint.family.blocks}.{block}."
    return {name.removeprefix(prefix): held for name, held in checkpoint.tensors.items() if name.startswith(prefix)}


def _merging(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the weights that are merged, of the shapes of a block's tensors: matrices, and the biases beside them."""
    matrices = {name for name, shape in shapes.items() if len(shape) > 1}
    biases = {name.removesuffix("weight") + "bias" for name in matrices}
    return {name: tuple(shape) for name, shape in shapes.items() if name in matrices or name in biases}
