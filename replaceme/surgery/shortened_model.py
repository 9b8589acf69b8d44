"""A loaded model that runs as if blocks were removed and transforms folded in, for as long as it is asked to.

Removed blocks pass their input on, removed halves of blocks add nothing to it, and the transform is applied according
to its placement. No weight changes for longer than that (and none at all but for `collapse`) and no block is
renumbered, so that masks and position-dependent settings stay those of each kept block. A checkpoint of `fold` must
give the same logits (tests/surgery/test_fold.py, tests/test_halves.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil, floor
from typing import TYPE_CHECKING

from replaceme.activations.hooks import silenced, skipped
from replaceme.core.places import Span, in_middle
from replaceme.models.family import Family

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.comparison import Predict
    from replaceme.calibration.tokens import Tokens
    from replaceme.transforms.transform import Transform


@contextmanager
def shortened(
    base_model: "nn.Module",
    family: Family,
    groups: Sequence[Span],
    transforms: Sequence["Transform | None"],
) -> Iterator[None]:
    """Within it the base model runs without what each group [start, end) removes; None: nothing takes its place."""
    blocks = family.block_modules(base_model)
    with ExitStack() as hooks:
        for (start, end), transform in zip(groups, transforms, strict=True):
            for block in blocks[ceil(start) : floor(end)]:
                hooks.callback(skipped(block, family))
            for module in _halves(blocks, family, (start, end)):
                hooks.callback(silenced(module))
            for undo in () if transform is None else transform.place.hooks(base_model, family, (start, end), transform):
                hooks.callback(undo)
        yield


def _halves(blocks: "nn.ModuleList", family: Family, group: Span) -> "list[nn.Module]":
    """Return the modules by which the MLP at a group's start and the attention at its end would add to the stream."""
    start, end = group
    first = family.mlp_modules(blocks[floor(start)]) if in_middle(start) else []
    last = family.carrying(end).mlp_modules(blocks[floor(end)]) if in_middle(end) else []
    return [*first, *last]


def predicting(
    model: "nn.Module",
    family: Family,
    groups: Sequence[Span],
    transforms: Sequence["Transform | None"],
) -> "Predict":
    """Return a function that gives the log-probabilities of a model with its head, run as `shortened` for a batch."""
    from replaceme.activations.divergence import log_probabilities

    def predict(batch: "Tokens") -> "torch.Tensor":
        with shortened(model.base_model, family, groups, transforms):
            return log_probabilities(model, batch)

    return predict
