"""Describe a new checkpoint by its differences from the source checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from replaceme.models.checkpoints import Checkpoint

Tensors = dict[str, "torch.Tensor"]
Edit = Callable[["torch.Tensor"], "torch.Tensor"]
Split = Callable[["torch.Tensor"], Tensors]


@dataclass(frozen=True)
class Changes:
    """Changes of tensors, by their name in the source.

    `edits`: a tensor's new content. `layers`: tensors that are added beside one, by their names in the numbering of the
    source. `biased`: linear layers of the MLPs without biases get zeros. `parts`: the tensors that replace one, by
    names in the same way.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    layers: "Mapping[str, Mapping[str, torch.Tensor]]" = field(default_factory=dict)
    biased: bool = False
    parts: Mapping[str, Split] = field(default_factory=dict)

    def of(self, checkpoint: "Checkpoint", tensors: Tensors) -> Tensors:
        """Return the tensors of a shard with their changes, under the names of the source."""
        if self.biased:
            tensors = _with_biases(checkpoint, tensors)
        near = [name for name in self.layers if name in tensors]
        new = {name: one.to(tensors[at].dtype) for at in near for name, one in self.layers[at].items()}
        for name, one in tensors.items():
            if name in self.parts:
                new |= self.parts[name](one)
            else:
                new[name] = self.edits[name](one) if name in self.edits else one
        return new

    def touch(self, names: Iterable[str]) -> bool:
        """Return whether the changes alter a shard with these tensors."""
        return self.biased or any(name in one for name in names for one in (self.edits, self.layers, self.parts))


def _with_biases(checkpoint: "Checkpoint", tensors: Tensors) -> Tensors:
    """Add zero biases beside the weights of a shard that have none, for the layers that the family's switch covers."""
    layers = tuple(f".{layer}.weight" for layer in checkpoint.family.biased)
    added = {
        name.removesuffix("weight") + "bias": weight.new_zeros(len(weight))
        for name, weight in tensors.items()
        if checkpoint.family.block_of(name) is not None and name.endswith(layers)
    }
    return tensors | {name: bias for name, bias in added.items() if name not in checkpoint.tensors}


@dataclass(frozen=True)
class Content:
    """A new checkpoint: the source's without the blocks of `groups`, with `changes`; its config.json.

    `code`: the file of code goes with it (see `custom_code`).
    """

    groups: Sequence[tuple[int, int]]
    changes: Changes
    config: dict[str, Any]
    code: bool = False
