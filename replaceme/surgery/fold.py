"""Fold transforms into a checkpoint: fold T, drop blocks, renumber, one safetensors shard at a time.

The model itself is never loaded. Which weights change, and how, is the affair of each transform's placement.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.cut_record import Cut, check_whole
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.core.places import HALF, Span
from replaceme.models.checkpoints import Checkpoint, with_derived_lists
from replaceme.models.custom_code import absent_modules, check_architecture, separate_config
from replaceme.models.model_config import check_fit, check_halves, check_sublayers, pruned_config
from replaceme.models.model_record import ModelRecord
from replaceme.placements.placement import INPUT, Placement
from replaceme.placements.registry import PLACEMENTS
from replaceme.probing.kinds import check_kinds
from replaceme.surgery.edits import Changes, Content, Edit
from replaceme.surgery.model_card import licence_of, model_card, use_of
from replaceme.surgery.renumbering import both, with_new_numbers
from replaceme.surgery.shards import renamed
from replaceme.surgery.write_checkpoint import Merger, merging, provenance_of

if TYPE_CHECKING:
    import torch

    from replaceme.transforms.transform import Transform


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
    finish(
        merger, cut, transforms, provenance, model_card(provenance, licence_of(record.folder) | use_of(record.folder))
    )
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


def _content(checkpoint: Checkpoint, groups: Sequence[Span], transforms: "Sequence[Transform]", device: str) -> Content:
    edits = with_new_numbers(checkpoint, groups, _edits(checkpoint, groups, [one.to(device) for one in transforms]))
    layers = _layers(checkpoint, groups, transforms)
    config, absent = pruned_config(with_derived_lists(checkpoint), groups), absent_modules(checkpoint, groups)
    if layers or absent:
        check_architecture(checkpoint)
        names = [renamed(checkpoint.family, groups, name) for tensors in layers.values() for name in tensors]
        config = separate_config(config, names, absent)
    return Content(groups, Changes(edits, layers), config, bool(layers or absent))


def _check(checkpoint: Checkpoint, cut: Cut, transforms: "Sequence[Transform]") -> None:
    groups, size, last = cut.groups, checkpoint.hidden_size, checkpoint.num_blocks
    if cut.num_blocks != last:
        raise ReplaceMeError(f"{checkpoint.folder}: the cut is of a model with {cut.num_blocks} blocks, not this one")
    for (start, end), (following, _) in pairwise([*groups, (last + 1, last + 1)]):
        if not HALF <= start <= end <= last or end >= following:
            raise ReplaceMeError(
                f"{checkpoint.folder}: cut {cut.span} does not lie in blocks 1 .. {last - 1}, in order and with "
                "a block between its groups"
            )
    if cut.in_middle:
        check_halves(checkpoint.family, str(checkpoint.folder))
    if not cut.pairs_up:
        check_sublayers(checkpoint.family, str(checkpoint.folder))
    if len(transforms) != len(groups):
        raise ReplaceMeError(
            f"{checkpoint.folder}: {len(transforms)} transforms for {len(groups)} groups; fit them again"
        )
    for transform in transforms:
        if transform.is_identity:
            continue
        gated = transform.recycled is not None and transform.recycled.gate is not None
        check_fit(checkpoint.config, str(checkpoint.folder), transform.placement, INPUT if gated else None)
        check_values(transform, size, checkpoint.folder)
        check_whole(cut, None if transform.place.anywhere else f"placement {transform.placement}")
        normed = checkpoint.family.post_norm is not None and transform.place.of_mlp
        if normed != (transform.gain is not None):
            raise ReplaceMeError(f"{checkpoint.folder}: transform fitted without regard to this model's norms; again")
    check_kinds(checkpoint.config, checkpoint.family, groups, str(checkpoint.folder))


def check_values(transform: "Transform", size: int, where: str | Path) -> None:
    """Raise ReplaceMeError, with `where` in front, unless a transform is finite and of hidden size `size`."""
    if transform.is_identity:
        return
    rows, columns = transform.matrix.shape
    if columns != size or (rows != size and transform.place.square):
        raise ReplaceMeError(
            f"{where}: transform is {rows} x {columns}, the model's hidden size is {size}; fit it again"
        )
    if not all(bool(tensor.isfinite().all()) for tensor in transform.tensors().values()):
        raise ReplaceMeError(f"{where}: the transform holds NaN or infinity; fit it again")


def _edits(checkpoint: Checkpoint, groups: Sequence[Span], transforms: "Sequence[Transform]") -> dict[str, Edit]:
    """Return the edits of tensors by their name in the source; each makes the new tensor from the given one."""
    edits: dict[str, Edit] = {}
    for place, placed in _by_place(groups, transforms):
        for name, edit in place.edits(checkpoint, placed).items():
            edits[name] = both(edits[name], edit) if name in edits else edit
    return edits


def _layers(
    checkpoint: Checkpoint, groups: Sequence[Span], transforms: "Sequence[Transform]"
) -> "dict[str, dict[str, torch.Tensor]]":
    """Return tensors of linear layers of their own, by the tensor beside (and in the type of) which they go."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for place, placed in _by_place(groups, transforms):
        for group, transform in placed:
            layers |= place.added_layers(checkpoint, group, transform)
    return layers


def _by_place(
    groups: Sequence[Span], transforms: "Sequence[Transform]"
) -> "Iterator[tuple[Placement, list[tuple[Span, Transform]]]]":
    """Return the placements in their order, each with the groups whose maps are placed so; identities change
    nothing.
    """
    pairs = list(zip(groups, transforms, strict=True))
    for place in PLACEMENTS.values():
        yield place, [pair for pair in pairs if pair[1].place is place and not pair[1].is_identity]
