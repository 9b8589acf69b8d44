"""Checkpoint in, shorter checkpoint out: fold T, drop blocks, renumber, one safetensors shard at a time.

With row vectors M = a W^T, W the down projection [hidden, intermediate], M T = a (T^T W)^T, so W becomes T^T W,
computed in float64 and rounded once to the stored type. The model itself is never loaded. In a mixture of experts M is
a sum of such terms, and T goes into each.
Where a norm with gains g follows the down projection, M = g * u / rms(u) with u = a W^T, and only the direction of M T
can be had: W becomes c T^T diag(g) W, the norm's gains one number, the transform's `gain`. The norm does not see c,
which keeps the size of W, so that the norm's epsilon matters as little as before.
Where a layer scale s follows, M = u diag(s), W becomes T^T diag(s) W and s ones.
A transform of placement `block` changes no weight: it is written as a linear layer of its own (see `separate`).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.card import licence_of, model_card
from replaceme.checkpoints import Checkpoint, open_checkpoint, with_derived_lists
from replaceme.cuts import described, groups_of
from replaceme.errors import ReplaceMeError
from replaceme.models import Family, check_fit, pruned_config
from replaceme.provenance import versions
from replaceme.separate import check_architecture, layers_of, separate_config
from replaceme.writing import Content, check_out, write_checkpoint

if TYPE_CHECKING:
    import torch

    from replaceme.recycling import Recycled
    from replaceme.transforms import Transform

Edit = Callable[["torch.Tensor"], "torch.Tensor"]


def fold(weight: "torch.Tensor", transform: "torch.Tensor") -> "torch.Tensor":
    """T^T W in float64, in W's type; weight [hidden, intermediate], or stacked so, transform [hidden, hidden]."""
    return (transform.double().T @ weight.double()).to(weight.dtype)


def fold_normed(weight: "torch.Tensor", gains: "torch.Tensor | None", transform: "torch.Tensor") -> "torch.Tensor":
    """`c T^T diag(g) W`, c such that its Frobenius norm is W's; gains g [hidden], the rest as in `fold`.

    Without gains the transform is a down projection [intermediate, hidden] itself, and the result `c T^T`.
    """
    folded = transform.double().T
    if gains is not None:
        folded = folded @ (gains.double()[:, None] * weight.double())
    return (folded * (weight.double().norm() / folded.norm())).to(weight.dtype)


def write_pruned(
    record: dict[str, Any],
    cut: dict[str, Any],
    transforms: "Sequence[Transform]",
    out: str | Path,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Write the pruned checkpoint of a model record with its model card; returns what goes into replaceme.json.

    `transforms` has one for each group of the cut; `origin` the hashes of what they were fitted on. Errors as in
    `merge`.
    """
    from replaceme.transforms import joint_report

    provenance = {
        "source": {key: record[key] for key in ("source", "revision", "architecture", "parameters", "files")},
        "cut": {key: value for key, value in cut.items() if key != "candidates"},
        "fit": joint_report(transforms),
        "placement": next((one.placement for one in transforms if not one.is_identity), None),
        "origin": origin,
        "versions": versions(),
    }
    merge(record["folder"], cut, transforms, out, provenance, model_card(provenance, licence_of(record["folder"])))
    return provenance


def merge(
    source: str | Path,
    cut: dict[str, Any],
    transforms: "Sequence[Transform]",
    out: str | Path,
    provenance: dict[str, Any],
    card: str | None = None,
) -> None:
    """Write the pruned checkpoint to folder `out` (atomically): the cut's blocks gone, each T folded into its carrier.

    Identities change no tensor. `provenance` goes into replaceme.json with the SHA-256 of every file; `card` is the
    model card (README.md). Raises ReplaceMeError when the architecture cannot carry a transform, or the cut and the
    transforms do not belong to this model.
    """
    check_out(source, out)
    checkpoint = open_checkpoint(source)
    groups = groups_of(cut)
    _check(checkpoint, cut, transforms)
    write_checkpoint(checkpoint, _content(checkpoint, groups, transforms), out, provenance, card)


def _content(checkpoint: Checkpoint, groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]") -> Content:
    """Config and tensors of the pruned checkpoint."""
    edits = _edits(checkpoint, groups, transforms)
    layers = layers_of(checkpoint, groups, transforms)
    if layers:
        check_architecture(checkpoint)
    constants = any(one.intercept is not None and one.placement != "block" for one in transforms)
    biased = constants and not checkpoint.family.has_bias
    config = pruned_config(with_derived_lists(checkpoint), groups)
    if biased:
        config[checkpoint.family.bias_switch] = True
    if layers:
        names = [new_name(checkpoint, name, groups) for tensors in layers.values() for name in tensors]
        config = separate_config(config, names)

    def rewritten(tensors: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
        if biased:
            tensors = _with_biases(checkpoint, tensors)
        near = [name for name in layers if name in tensors]
        new = {name: one.to(tensors[at].dtype) for at in near for name, one in layers[at].items()}
        tensors = {name: edits[name](tensor) if name in edits else tensor for name, tensor in tensors.items()} | new
        return {new_name(checkpoint, name, groups): tensor for name, tensor in tensors.items()}

    return Content(kept_tensors(checkpoint, groups), rewritten, config, bool(layers))


def _check(checkpoint: Checkpoint, cut: dict[str, Any], transforms: "Sequence[Transform]") -> None:
    groups, size, last = groups_of(cut), checkpoint.hidden_size, checkpoint.num_blocks
    if cut.get("num_blocks", last) != last:
        raise ReplaceMeError(
            f"{checkpoint.folder}: the cut is of a model with {cut['num_blocks']} blocks, not this one"
        )
    for (start, end), (following, _) in pairwise([*groups, (last + 1, last + 1)]):
        if not 1 <= start <= end <= last or end >= following:
            raise ReplaceMeError(
                f"{checkpoint.folder}: cut {described(cut)} does not lie in blocks 1 .. {last - 1}, in order and with "
                "a block between its groups"
            )
    if len(transforms) != len(groups):
        raise ReplaceMeError(
            f"{checkpoint.folder}: {len(transforms)} transforms for {len(groups)} groups; fit them again"
        )
    for transform in transforms:
        if transform.is_identity:
            continue
        asked = (transform.intercept is not None, transform.recycled is not None)
        check_fit(checkpoint.config, str(checkpoint.folder), transform.placement, *asked)
        rows, columns = transform.matrix.shape
        if columns != size or (rows != size and transform.placement != "down_proj"):
            raise ReplaceMeError(
                f"{checkpoint.folder}: transform is {rows} x {columns}, the model's hidden size is {size}"
            )
        if not all(bool(tensor.isfinite().all()) for tensor in transform.tensors().values()):
            raise ReplaceMeError(f"{checkpoint.folder}: the transform holds NaN or infinity; fit it again")
        normed = checkpoint.family.post_norm is not None and transform.placement != "block"
        if normed != (transform.gain is not None):
            raise ReplaceMeError(f"{checkpoint.folder}: transform fitted without regard to this model's norms; again")


def _edits(
    checkpoint: Checkpoint, groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]"
) -> dict[str, Edit]:
    """What happens to which tensors (by their name in the source); a new tensor is made from one that is given."""
    edits: dict[str, Edit] = {}
    for (start, _), transform in zip(groups, transforms, strict=True):
        if not transform.is_identity and transform.placement != "block":
            edits |= _edits_of(checkpoint, start - 1, transform)
    return edits


def _edits_of(checkpoint: Checkpoint, carrier: int, transform: "Transform") -> dict[str, Edit]:
    family, prefix = checkpoint.family, f"{checkpoint.family.blocks}.{carrier}."
    edits = {} if transform.recycled is None else _recycling(family, prefix, transform.recycled)
    if family.scale is not None:
        # M = u diag(s) with u = a W^T, so that s goes into T, and is one from now on
        edits[prefix + family.scale] = lambda scale: scale.new_ones(scale.shape)
        if transform.placement == "mlp":
            scale = checkpoint.tensor(prefix + family.scale).to(transform.matrix)
            transform = replace(transform, matrix=scale[:, None] * transform.matrix)
    for down in checkpoint.folded(carrier):
        if family.post_norm is not None:
            edits |= _normed_fold(checkpoint, prefix, transform)
        else:
            edits |= _plain_fold(checkpoint, down, transform)
    return edits


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _plain_fold(checkpoint: Checkpoint, down: str, transform: "Transform") -> dict[str, Edit]:
    family, matrix, refitted = checkpoint.family, transform.matrix, transform.placement == "down_proj"
    if transform.intercept is not None and family.has_bias and _bias_of(down) not in checkpoint.tensors:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {_bias_of(down)}, into which the intercept should go")

    def weight(given: "torch.Tensor") -> "torch.Tensor":
        if refitted:
            return (matrix.T / family.multiplier).to(given.dtype)
        return fold(given, matrix)

    def oriented(given: "torch.Tensor") -> "torch.Tensor":
        return (weight(given.T).T if family.transposed else weight(given)).contiguous()

    def bias(given: "torch.Tensor") -> "torch.Tensor":
        folded = matrix.new_zeros(matrix.shape[1]) if refitted else given.double() @ matrix
        constant = 0.0 if transform.intercept is None else transform.intercept / family.multiplier
        return (folded + constant).to(given.dtype)

    return {down: oriented, _bias_of(down): bias}


def _normed_fold(checkpoint: Checkpoint, carrier: str, transform: "Transform") -> dict[str, Edit]:
    family, norm, gains = checkpoint.family, carrier + checkpoint.family.post_norm, None
    if transform.placement != "down_proj":
        gains = family.gain_offset + checkpoint.tensor(norm).double()
    return {
        carrier + family.fold[0]: lambda weight: fold_normed(weight, gains, transform.matrix),
        norm: lambda weight: weight.new_full(weight.shape, transform.gain - family.gain_offset),
    }


def _recycling(family: Family, carrier: str, recycled: "Recycled") -> dict[str, Edit]:
    """The rows of the gate and up projections that belong to the recycled neurons, and their biases, which go."""
    fused = family.gate == family.up  # one weight, the gate above

    def rows(*parts: "tuple[int, torch.Tensor]") -> Edit:
        def edit(given: "torch.Tensor") -> "torch.Tensor":
            changed, intermediate = given.clone(), len(given) // (1 + fused)
            for part, values in parts:
                changed[part * intermediate + recycled.neurons] = values.to(given.dtype)
            return changed

        return edit

    zero = recycled.gate.new_zeros(())
    edits: dict[str, Edit] = {}
    if fused:
        edits[family.gate] = rows((0, recycled.gate), (1, recycled.up))
        edits[_bias_of(family.gate)] = rows((0, zero), (1, zero))
    else:
        for name, values in ((family.gate, recycled.gate), (family.up, recycled.up)):
            edits[name], edits[_bias_of(name)] = rows((0, values)), rows((0, zero))
    return {carrier + name: edit for name, edit in edits.items()}


def _with_biases(checkpoint: Checkpoint, tensors: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Zero biases beside the weights of a shard that have none, for the layers that the family's switch gives them."""
    layers = tuple(f".{layer}.weight" for layer in checkpoint.family.biased)
    added = {
        name.removesuffix("weight") + "bias": weight.new_zeros(len(weight))
        for name, weight in tensors.items()
        if checkpoint.family.block_of(name) is not None and name.endswith(layers)
    }
    return tensors | {name: bias for name, bias in added.items() if name not in checkpoint.tensors}


def kept_tensors(checkpoint: Checkpoint, groups: Sequence[tuple[int, int]]) -> list[str]:
    """The tensors of a checkpoint that are of no block that goes."""
    return [name for name in checkpoint.tensors if new_name(checkpoint, name, groups) is not None]


def new_name(checkpoint: Checkpoint, name: str, groups: Sequence[tuple[int, int]]) -> str | None:
    """A tensor's name in the pruned checkpoint, or None when its block goes."""
    block = checkpoint.family.block_of(name)
    if block is None:
        return name
    if any(start <= block < end for start, end in groups):
        return None
    gone = sum(end - start for start, end in groups if end <= block)
    return checkpoint.family.renamed(name, block - gone) if gone else name
