"""Fold transforms into a checkpoint: fold T, drop blocks, renumber, one safetensors shard at a time.

With row vectors M = a W^T, W the down projection [hidden, intermediate], M T = a (T^T W)^T, so W becomes T^T W,
computed in float64 and rounded once to the stored type. The model itself is never loaded. In a mixture of experts M is
a sum of such terms, and T goes into each.
Where a norm with gains g follows the down projection, M = g * u / rms(u) with u = a W^T, and only the direction of M T
can be had: W becomes c T^T diag(g) W, the norm's gains one number, the transform's `gain`. The norm does not see c,
which keeps the size of W, so that the norm's epsilon matters as little as before.
Where a layer scale s follows, M = u diag(s), W becomes T^T diag(s) W and s ones.
A transform of placement `block` changes no weight: it is written as a linear layer of its own (see `custom_code`).
One of placement `upstream` changes all weights that write to the residual stream before the cut (see `stream_scale`),
one of placement `collapse` all matrices of the carrier (see `laco_merge`).
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.models.checkpoints import Checkpoint, with_derived_lists
from replaceme.models.custom_code import check_architecture, layers_of, separate_config
from replaceme.models.family import Family
from replaceme.models.model_config import check_fit, pruned_config
from replaceme.models.model_record import ModelRecord
from replaceme.surgery.edits import Changes, Content, Edit
from replaceme.surgery.laco_merge import COLLAPSE, coefficients_of, collapsing
from replaceme.surgery.model_card import licence_of, model_card
from replaceme.surgery.renumbering import both, with_new_numbers
from replaceme.surgery.shards import renamed
from replaceme.surgery.stream_scale import factors
from replaceme.surgery.write_checkpoint import Merger, merging, provenance_of

if TYPE_CHECKING:
    import torch

    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.transforms.transform import Transform


def fold(weight: "torch.Tensor", transform: "torch.Tensor") -> "torch.Tensor":
    """Compute T^T W in float64, in W's type; weight [hidden, intermediate], or stacked so, transform [hidden, hidden].

    Formed where T is, returned where W is.
    """
    return (transform.double().T @ weight.to(transform.device).double()).to(weight)


def fold_normed(weight: "torch.Tensor", gains: "torch.Tensor | None", transform: "torch.Tensor") -> "torch.Tensor":
    """Compute `c T^T diag(g) W`, c such that its Frobenius norm is W's; gains g [hidden], the rest as in `fold`.

    Without gains the transform is a down projection [intermediate, hidden] itself, and the result `c T^T`.
    """
    folded, given = transform.double().T, weight.to(transform.device).double()
    if gains is not None:
        folded = folded @ (gains.to(given)[:, None] * given)
    return (folded * (given.norm() / folded.norm())).to(weight)


def finish_pruned(
    merger: Merger,
    record: ModelRecord,
    cut: Cut,
    transforms: "Sequence[Transform]",
    origin: Origin,
) -> dict[str, Any]:
    """Write the pruned checkpoint of a model record with its model card; returns the content of replaceme.json.

    `transforms` has one for each group of the cut; `origin` the hashes of the files that they were fitted on. Errors as
    in `merge`.
    """
    from replaceme.transforms.transform import joint_report

    provenance = provenance_of(record, cut, joint_report(transforms), origin)
    provenance["placement"] = next((one.placement for one in transforms if not one.is_identity), None)
    finish(merger, cut, transforms, provenance, model_card(provenance, licence_of(record.folder)))
    return provenance


def merge(
    source: str | Path,
    cut: Cut,
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
    with merging(source, out) as merger:
        finish(merger, cut, transforms, provenance, card)


def finish(
    merger: Merger,
    cut: Cut,
    transforms: "Sequence[Transform]",
    provenance: dict[str, Any],
    card: str | None = None,
) -> None:
    """Write what `merge` writes, by a merger that may have begun already."""
    _check(merger.checkpoint, cut, transforms)
    merger.write(_content(merger.checkpoint, cut.groups, transforms, merger.device), provenance, card)


def _content(
    checkpoint: Checkpoint, groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]", device: str
) -> Content:
    edits = with_new_numbers(checkpoint, groups, _edits(checkpoint, groups, [one.to(device) for one in transforms]))
    layers = layers_of(checkpoint, groups, transforms)
    constants = any(one.intercept is not None and one.of_mlp for one in transforms)
    biased = constants and not checkpoint.family.has_bias
    config = pruned_config(with_derived_lists(checkpoint), groups)
    if biased:
        config[checkpoint.family.bias_switch] = True
    if layers:
        check_architecture(checkpoint)
        names = [renamed(checkpoint.family, groups, name) for tensors in layers.values() for name in tensors]
        config = separate_config(config, names)
    return Content(groups, Changes(edits, layers, biased), config, bool(layers))


def _check(checkpoint: Checkpoint, cut: Cut, transforms: "Sequence[Transform]") -> None:
    groups, size, last = cut.groups, checkpoint.hidden_size, checkpoint.num_blocks
    if cut.num_blocks != last:
        raise ReplaceMeError(f"{checkpoint.folder}: the cut is of a model with {cut.num_blocks} blocks, not this one")
    for (start, end), (following, _) in pairwise([*groups, (last + 1, last + 1)]):
        if not 1 <= start <= end <= last or end >= following:
            raise ReplaceMeError(
                f"{checkpoint.folder}: cut {cut.span} does not lie in blocks 1 .. {last - 1}, in order and with "
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
        check_values(transform, size, checkpoint.folder)
        normed = checkpoint.family.post_norm is not None and transform.of_mlp
        if normed != (transform.gain is not None):
            raise ReplaceMeError(f"{checkpoint.folder}: transform fitted without regard to this model's norms; again")


def check_values(transform: "Transform", size: int, where: str | Path) -> None:
    """Raise ReplaceMeError, with `where` in front, unless a transform is finite and of hidden size `size`."""
    if transform.is_identity:
        return
    rows, columns = transform.matrix.shape
    if columns != size or (rows != size and transform.placement != "down_proj"):
        raise ReplaceMeError(
            f"{where}: transform is {rows} x {columns}, the model's hidden size is {size}; fit it again"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in transform.tensors().values()):
        raise ReplaceMeError(f"{where}: the transform holds NaN or infinity; fit it again")


def _edits(
    checkpoint: Checkpoint, groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]"
) -> dict[str, Edit]:
    """Return the edits of tensors by their name in the source; each makes the new tensor from the given one."""
    edits: dict[str, Edit] = {}
    for (start, end), transform in zip(groups, transforms, strict=True):
        if transform.placement == COLLAPSE:
            edits |= collapsing(checkpoint, start, end, coefficients_of(transform))
        elif not transform.is_identity and transform.of_mlp:
            edits |= _edits_of(checkpoint, start - 1, transform)
    for name, scaled in factors(checkpoint, groups, transforms).items():
        edits[name] = both(edits[name], scaled) if name in edits else scaled
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
            edits |= plain_fold(checkpoint, down, transform)
    return edits


def _bias_of(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def plain_fold(checkpoint: Checkpoint, down: str, transform: "Transform") -> dict[str, Edit]:
    """Return the edits by which T changes a down projection and its bias, whatever follows it."""
    family, matrix, refitted = checkpoint.family, transform.matrix, transform.placement == "down_proj"
    if transform.intercept is not None and family.has_bias and _bias_of(down) not in checkpoint.tensors:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {_bias_of(down)}, into which the intercept should go")

    def weight(given: "torch.Tensor") -> "torch.Tensor":
        if refitted:
            return (matrix.T / family.multiplier).to(given)
        return fold(given, matrix)

    def oriented(given: "torch.Tensor") -> "torch.Tensor":
        return (weight(given.T).T if family.transposed else weight(given)).contiguous()

    def bias(given: "torch.Tensor") -> "torch.Tensor":
        folded = matrix.new_zeros(matrix.shape[1]) if refitted else given.to(matrix) @ matrix
        constant = 0.0 if transform.intercept is None else transform.intercept / family.multiplier
        return (folded + constant).to(given)

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
    """Return the edits of the gate and up rows of the recycled neurons, and of their biases, which become zero."""
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
