"""`down_proj`: a map in place of the carrier's down projection.

m = the input of the down projection, r as of `mlp`. T [intermediate, hidden] is its new weight: the maps W T of the
mlp placement are among these, and the parameters are as many as before. Some of the MLP's neurons may be recycled
before the fit (see `recycled_neurons`), and their rows of gate and up projection change too. Of a cut that begins in
the middle of a block it is the attention's output projection, from [heads' outputs, hidden].
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span, carrier_of
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import Rows, bias_of, device_of, mapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.capture import Activations
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform


class DownProj(Mlp):
    """In place of the carrier's down projection."""

    name = "down_proj"
    description = "in place of the down projection, of an attention the output projection (full T only)"
    square = False
    recycles = True
    origins = ("weight", "zero")

    def wanted(self, groups: Sequence[Span]) -> dict[str, frozenset[int]]:
        """Return the inputs of the down projections, beside what `mlp` wants."""
        return super().wanted(groups) | {"down_input": frozenset(start - 1 for start, _ in groups)}

    def rows(self, activations: "Activations", cut: Span, recycled: "Recycled | None" = None) -> Rows:
        """Return (inputs of the down projection, as the recycled neurons make them; the terms of r)."""
        before = cut[0] - 1
        m = activations.down_input[before]
        if recycled is not None:
            m = recycled.apply(m, activations.mlp_input[before])
        return m, super().rows(activations, cut)[1]

    def width(self, hidden: int, intermediate: int) -> int:
        """Return the number of neurons."""
        return intermediate

    def check(self, family: "Family", config: dict[str, Any], where: str) -> None:
        """There must be one down projection."""
        if family.mixture or family.scalar is not None:
            raise ReplaceMeError(
                f"{where}: its MLPs are mixtures of experts, or scaled, with no single down projection to fit; use "
                "placement mlp"
            )

    def old_weight(self, checkpoint: "Checkpoint", cut: Span, recycled: "Recycled | None" = None) -> "torch.Tensor":
        """Return W0, float64 [intermediate, hidden]: m W0 is M without its bias, and where a norm follows, before the
        norm's division.

        Recycled neurons, whose input is new, have rows of zeros.
        """
        checkpoint, carrier = checkpoint.carrying(cut[0]), carrier_of(cut[0])
        family, prefix = checkpoint.family, f"{checkpoint.family.blocks}.{carrier}."
        [down] = checkpoint.folded(carrier)
        stored = checkpoint.tensor(down).double()
        found = family.multiplier * (stored if family.transposed else stored.T)
        if family.scale is not None:
            found *= checkpoint.tensor(prefix + family.scale).double()
        if family.post_norm is not None:
            found *= family.gain_offset + checkpoint.tensor(prefix + family.post_norm).double()
        if recycled is not None:
            found[recycled.neurons] = 0
        return found.contiguous()

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Yield the MLP puts out T of what its down projection is given."""
        family, carrier = family.carrying(cut[0]), family.block_modules(base_model)[carrier_of(cut[0])]
        recycled = transform.recycled
        seen: dict[str, torch.Tensor] = {}

        def keep_rows(_: "nn.Module", inputs: Any) -> None:
            seen["rows"] = inputs[0] if recycled is None else recycled.apply(inputs[0], seen.pop("input"))

        def keep_input(_: "nn.Module", inputs: Any) -> None:
            seen["input"] = inputs[0]

        if recycled is not None:
            yield family.gate_projection(carrier).register_forward_pre_hook(keep_input).remove
        yield family.down_projection(carrier).register_forward_pre_hook(keep_rows).remove
        [module] = family.mlp_modules(carrier)
        device = device_of(module, carrier)
        yield mapped(module, transform, device, lambda output: seen.pop("rows"), family.multiplier)
        yield from self.closed(base_model, family, cut)

    def _of_carrier(self, checkpoint: "Checkpoint", carrier: int, transform: "Transform") -> "dict[str, Edit]":
        prefix, recycled = f"{checkpoint.family.blocks}.{carrier}.", transform.recycled
        changed = {} if recycled is None else _recycling(checkpoint.family, prefix, recycled)
        return changed | super()._of_carrier(checkpoint, carrier, transform)

    def behind_scale(self, scale: "torch.Tensor", transform: "Transform") -> "Transform":
        """Return T itself, which was fitted with the scale behind it, and is the weight without one."""
        return transform

    def new_weight(self, given: "torch.Tensor", family: "Family", transform: "Transform") -> "torch.Tensor":
        """Return T^T, which is M before the family's factor on it."""
        return (transform.matrix.T / family.multiplier).to(given)

    def new_bias(self, given: "torch.Tensor", transform: "Transform") -> "torch.Tensor":
        """Return none, as there was none in the fit."""
        return given.new_zeros(given.shape)

    def direction(self, given: "torch.Tensor", gains: "torch.Tensor", transform: "Transform") -> "torch.Tensor":
        """Return T^T."""
        return transform.matrix.double().T


def _recycling(family: "Family", carrier: str, recycled: "Recycled") -> "dict[str, Edit]":
    """Return the rows of the gate and up projections that belong to the recycled neurons, and their biases, zero
    unless the neurons have some.
    """
    fused = family.gate == family.up  # one weight, the gate above

    def rows(*parts: "tuple[int, torch.Tensor]") -> "Edit":
        def edit(given: "torch.Tensor") -> "torch.Tensor":
            changed, intermediate = given.clone(), len(given) // (1 + fused)
            for part, values in parts:
                changed[part * intermediate + recycled.neurons] = values.to(given.dtype)
            return changed

        return edit

    def turned(edit: "Edit") -> "Edit":
        return lambda given: edit(given.mT).mT.contiguous()

    projections: dict[str, list[tuple[torch.Tensor, torch.Tensor | None]]] = {}
    if family.gate is not None:
        projections[family.gate] = [(recycled.gate, recycled.gate_bias)]
    projections.setdefault(family.up, []).append((recycled.up, recycled.up_bias))
    zero = recycled.up.new_zeros(())
    edits: dict[str, Edit] = {}
    for name, found in projections.items():
        weights = rows(*((part, weight) for part, (weight, _) in enumerate(found)))
        edits[name] = turned(weights) if family.is_transposed(name) else weights
        edits[bias_of(name)] = rows(*((part, zero if bias is None else bias) for part, (_, bias) in enumerate(found)))
    return {carrier + name: edit for name, edit in edits.items()}
