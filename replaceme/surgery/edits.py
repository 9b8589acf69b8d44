"""Describe a new checkpoint by its differences from the source checkpoint."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
Edit = Callable[["torch.Tensor"], "torch.Tensor"]
Split = Callable[["torch.Tensor"], Tensors]


@dataclass(frozen=True)
class Changes:
    """Changes of tensors, by their name in the source.

    `edits`: a tensor's new content. `layers`: tensors that are added beside one, by their names in the numbering of the
    source. `parts`: the tensors that replace one, by names in the same way.
    """

    edits: Mapping[str, Edit] = field(default_factory=dict)
    layers: "Mapping[str, Mapping[str, torch.Tensor]]" = field(default_factory=dict)
    parts: Mapping[str, Split] = field(default_factory=dict)

    def of(self, tensors: Tensors) -> Tensors:
        """Return the tensors of a shard with their changes, under the names of the source."""
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
        return any(name in one for name in names for one in (self.edits, self.layers, self.parts))


@dataclass(frozen=True)
class Content:
    """A new checkpoint: the source's without the blocks of `groups`, with `changes`; its config.json.

    `code`: the file of code goes with it (see `custom_code`).
    """

    groups: Sequence[tuple[int, int]]
    changes: Changes
    config: dict[str, Any]
    code: bool = False
