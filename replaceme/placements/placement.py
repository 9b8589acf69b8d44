"""Interface of placements: regression of a map, its hook in a loaded model, the weights that it is folded into.

T replaces a cut [start, end); the block that writes to the stream last before it is the carrier, block start - 1 of
whole blocks. Where the cut begins in the middle of a block, the attention of that block has the part of an MLP
(`Family.carrying`). A placement is a file of this room, named as in the config, and a line in `registry`: see
docs/adding.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.capture import Activations
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform

INPUT, REMOVED = "input", "removed"  # what recycled neurons are made from

Rows = tuple["torch.Tensor", tuple["torch.Tensor", ...]]  # m, and the terms (a, b, c) of r = a - b + c, or (r,)


class Placement:
    """A place for T.

    `description` is what docs/config.md says; without one a config cannot name the placement. `of_mlp`: T maps what the
    MLP adds, and goes into the carrier's MLP; `on_stream`: T maps the whole residual stream. `square`: T is [hidden,
    hidden]; `anywhere`: it may go into an attention; `factor`: a multiple of the identity; `recycles`: neurons can be
    recycled before the fit; `own_code`: the checkpoint brings code. `origins` are what a penalty can pull T to, the
    usual one first. `put` is what the model card says was done with the map.
    """

    name: ClassVar[str]
    description: ClassVar[str] = ""
    of_mlp: ClassVar[bool] = False
    on_stream: ClassVar[bool] = False
    square: ClassVar[bool] = True
    anywhere: ClassVar[bool] = False
    factor: ClassVar[bool] = False
    recycles: ClassVar[bool] = False
    origins: ClassVar[tuple[str, ...]] = ("zero", "identity")
    own_code: ClassVar[bool] = False
    put: ClassVar[str] = "folded into"

    @property
    def fitted_as(self) -> str:
        """The name of the placement whose sums and rows its fits read."""
        return self.name

    def wanted(self, groups: Sequence[Span]) -> dict[str, frozenset[int]]:
        """Return the blocks of which each tensor of `Activations` is captured for the cuts, by the tensor's name."""
        states = frozenset(place - 1 for group in groups for place in group)
        return {"hidden_states": states}

    def rows(self, activations: "Activations", cut: Span, recycled: "Recycled | None" = None) -> Rows:
        """Return (m, terms of r) of a batch, [samples, tokens, width] each."""
        raise NotImplementedError

    def width(self, hidden: int, intermediate: int) -> int:
        """Return the width of m in a model with these sizes."""
        return hidden

    def check(self, family: "Family", config: dict[str, Any], where: str) -> None:
        """Raise ReplaceMeError where a model of this family and config.json has no place for T."""

    def old_weight(self, checkpoint: "Checkpoint", cut: Span, recycled: "Recycled | None" = None) -> "torch.Tensor":
        """Return the T that the checkpoint has, float64 [width, hidden], for a placement with the origin `weight`."""
        raise NotImplementedError

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Let a loaded model compute with T; yields what undoes it."""
        raise NotImplementedError

    def edits(self, checkpoint: "Checkpoint", placed: "Sequence[tuple[Span, Transform]]") -> "dict[str, Edit]":
        """Return the edits of a checkpoint's tensors, for all maps of this placement."""
        return {}

    def added_layers(self, checkpoint: "Checkpoint", cut: Span, transform: "Transform") -> dict[str, dict]:
        """Return tensors of linear layers of their own, float64, by the tensor beside (and in the type of) which they
        go.
        """
        return {}


def check_language_model(name: str, family: "Family", where: str) -> None:
    """Raise ReplaceMeError for an encoder, whose residual stream no map is put on."""
    if not family.predicts:
        raise ReplaceMeError(f"{where}: placement {name} is of language models, this is an encoder; use placement mlp")


def mapped(
    module: "nn.Module",
    transform: "Transform",
    device: "torch.device",
    rows: "Callable[[torch.Tensor], torch.Tensor]",
    divisor: float = 1.0,
) -> Callable[[], None]:
    """Let a module put out T of the `rows` of its output, divided by a number; returns what undoes it."""
    import torch

    matrix = transform.matrix.to(device, torch.float32)  # moved once, not at every call
    moved = replace(transform, matrix=matrix)

    def hook(_: "nn.Module", inputs: Any, output: Any) -> Any:
        given = output[0] if isinstance(output, tuple) else output
        found = (moved.apply(rows(given).to(matrix.dtype)) / divisor).to(given.dtype)
        return (found, *output[1:]) if isinstance(output, tuple) else found

    return module.register_forward_hook(hook).remove


def device_of(module: "nn.Module", carrier: "nn.Module") -> "torch.device":
    """Return the device of a module's parameters, or of its block's where it has none."""
    return next(module.parameters(), next(carrier.parameters())).device


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight, or beside a stack of experts' weights."""
    return weight.removesuffix("weight") + "bias" if weight.endswith("weight") else f"{weight}_bias"
