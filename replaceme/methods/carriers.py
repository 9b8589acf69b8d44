"""Give the carriers of a cut new parameters, and remove its blocks: the result is of the original architecture.

The parameters are those of a `Found`, named `<block>.<parameter>`.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.methods.found import Found
from replaceme.models.checkpoints import with_derived_lists
from replaceme.models.model_config import pruned_config
from replaceme.surgery.edits import Changes, Content
from replaceme.surgery.renumbering import with_new_numbers
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family


def content(checkpoint: "Checkpoint", cut: Cut, found: Found) -> Content:
    """Replace the carriers' tensors, remove the blocks of the cut, renumber the rest: no code is needed."""
    changed = {f"{checkpoint.family.blocks}.{name}": one for name, one in found.tensors.items()}
    for name, one in changed.items():
        if checkpoint.tensors.get(name, ("", ()))[1] != tuple(one.shape):
            raise ReplaceMeError(f"{checkpoint.folder}: no tensor {name} of shape {list(one.shape)} to replace")
    edits = with_new_numbers(checkpoint, cut.groups, {name: partial(_instead, one) for name, one in changed.items()})
    return Content(cut.groups, Changes(edits), pruned_config(with_derived_lists(checkpoint), cut.groups))


def _instead(new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return new.to(old.dtype)


@contextmanager
def running(model: nn.Module, family: "Family", cut: Cut, found: Found) -> Iterator[None]:
    """Give the carriers their new parameters within the block; the blocks of the cut pass their input on."""
    with (
        shortened(model, family, cut.groups, [None] * len(cut.groups)),
        replaced(family.block_modules(model), found.tensors),
    ):
        yield


@contextmanager
def replaced(blocks: nn.ModuleList, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Give blocks other values of the parameters `<block>.<parameter>`, in the model's type, within the context."""
    with ExitStack() as undone:
        for name, one in tensors.items():
            number, _, parameter = name.partition(".")
            path, _, last = parameter.rpartition(".")
            owner = blocks[int(number)].get_submodule(path)
            before = getattr(owner, last)
            undone.callback(setattr, owner, last, before)
            setattr(owner, last, nn.Parameter(one.to(before), requires_grad=False))
        yield
