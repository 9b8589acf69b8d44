"""Merge removed blocks into their carrier by adding differences of weights: LaCo (arXiv 2402.11187).

Every weight of attention and MLP of block c = start - 1, with its bias, becomes `W_c + sum_k (W_k - W_c)`, k the
removed blocks start .. end-1, or, where the cut was chosen by merging, the sum with coefficients that belongs to it
(`laco_search`). Norms stay those of c. Nothing is fitted and no text is read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.models.checkpoints import Checkpoint
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform

COLLAPSE = "collapse"


def fit_collapse(hidden_size: int, coefficients: Sequence[int] | None = None) -> "Transform":
    """Return the transform that stands for the merge; it has no map of its own (`matrix` is I).

    `coefficients` of the carrier and each removed block: by default `(1 - n, 1, ..., 1)` of n removed blocks.
    """
    import torch

    from replaceme.transforms.transform import Transform

    found = Transform(torch.eye(hidden_size, dtype=torch.float64), {"solver": "collapse"}, COLLAPSE)
    return found if coefficients is None else _with(found, coefficients)


def _with(transform: "Transform", coefficients: Sequence[int]) -> "Transform":
    return replace(transform, report={**transform.report, "coefficients": list(coefficients)})


def as_chosen(cut: Cut, transforms: "Sequence[Transform]") -> "list[Transform]":
    """Return the transforms of the groups of a cut.json; merges get the coefficients of the cut's search."""
    if cut.coefficients is None:
        return list(transforms)
    pairs = zip(transforms, cut.coefficients, strict=True)
    return [_with(one, given) if one.placement == COLLAPSE else one for one, given in pairs]


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
    """Give a loaded carrier the merged weights; returns a function that restores its own."""
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
    """Return the mergeable weights among the shapes of a block's tensors: matrices, and the biases beside them."""
    matrices = {name for name, shape in shapes.items() if len(shape) > 1}
    biases = {name.removesuffix("weight") + "bias" for name in matrices}
    return {name: tuple(shape) for name, shape in shapes.items() if name in matrices or name in biases}
