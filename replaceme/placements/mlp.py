"""`mlp`: a map of what the carrier's MLP adds, folded into its down projection (eq. 6 of arXiv 2505.02819).

m = M, what the MLP adds; r = hidden_states[end-1] - hidden_states[start-1] + M. With row vectors M = a W^T, W the down
projection [hidden, intermediate], M T = a (T^T W)^T, so W becomes T^T W, computed in float64 and rounded once to the
stored type. Of a cut that begins in the middle of a block, attention and output projection take the place of these. In
a mixture of experts M is a sum of such terms, and T goes into each.
Where a norm with gains g follows the down projection, M = g * u / rms(u) with u = a W^T, and only the direction of M T
can be had: W becomes c T^T diag(g) W, and the norm's gains one number, the transform's `gain`. The norm does not see c,
which keeps the size of W, so that the norm's epsilon matters as little as before.
Where a layer scale s follows, M = u diag(s), W becomes T^T diag(s) W and s ones.
Where blocks keep several residual streams, M = p_s u in stream s, p_s the token's weight of that stream, and p_s u T is
what T^T W adds to it: each stream is a row of its own, r is of all streams, and W becomes T^T W as before.
Where a block ends with a norm of the whole residual stream (BERT), r is of the states that go into these norms, and the
norm of block end - 1 takes the place of the carrier's: it makes of Y + M T what it made of its own input.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING

from replaceme.core.places import Span, carrier_of
from replaceme.placements.placement import Placement, Rows, bias_of, device_of, mapped

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.activations.capture import Activations
    from replaceme.activations.recycled_neurons import Recycled
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family
    from replaceme.surgery.edits import Edit
    from replaceme.transforms.transform import Transform


def fold(weight: "torch.Tensor", transform: "torch.Tensor") -> "torch.Tensor":
    """Return T^T W in float64, in W's type; weight [hidden, intermediate], or stacked so, transform [hidden, hidden].

    Formed where T is, returned where W is.
    """
    return (transform.double().T @ weight.to(transform.device).double()).to(weight)


class Mlp(Placement):
    """Onto the output of the carrier's MLP."""

    name = "mlp"
    description = "onto the output of the carrier's MLP, folded into its down projection"
    of_mlp = True
    anywhere = True

    def wanted(self, groups: Sequence[Span]) -> dict[str, frozenset[int]]:
        """Return m of the carriers, beside the states."""
        return super().wanted(groups) | {"mlp_output": frozenset(start - 1 for start, _ in groups)}

    def rows(self, activations: "Activations", cut: Span, recycled: "Recycled | None" = None) -> Rows:
        """Return (M, the terms of r), a row for each of several residual streams."""
        before, last = cut[0] - 1, cut[1] - 1
        added = activations.mlp_output[before]
        return added, (activations.stream(last, added), activations.stream(before, added), added)

    def hooks(self, base_model: "nn.Module", family: "Family", cut: Span, transform: "Transform") -> Iterator[Callable]:
        """Yield the MLP puts out M T."""
        family, carrier = family.carrying(cut[0]), family.block_modules(base_model)[carrier_of(cut[0])]
        factor = family.factor(carrier)
        for module in family.mlp_modules(carrier):
            rows = partial(family.added, factor=factor)
            yield mapped(module, transform, device_of(module, carrier), rows, factor)
        yield from self.closed(base_model, family, cut)

    def closed(self, base_model: "nn.Module", family: "Family", cut: Span) -> Iterator[Callable]:
        """Yield the norm that ends the carrier, if one does, is that of the last removed block."""
        if family.closing_norm is not None:
            blocks = family.block_modules(base_model)
            own, other = (blocks[block - 1].get_submodule(family.closing_norm) for block in cut)
            yield own.register_forward_hook(lambda _, inputs, output: other(*inputs)).remove

    def edits(self, checkpoint: "Checkpoint", placed: "Sequence[tuple[Span, Transform]]") -> "dict[str, Edit]":
        """Return new weights, and biases, of the down projections, and of what follows them."""
        found: dict[str, Edit] = {}
        for (start, end), transform in placed:
            found |= self._of_carrier(checkpoint.carrying(start), carrier_of(start), transform)
            if checkpoint.family.closing_norm is not None:  # no place in the middle of a block
                norms = (checkpoint.family.closing(checkpoint.tensors, block - 1) for block in (start, end))
                for own, other in zip(*norms, strict=True):
                    found[own] = lambda _, other=other: checkpoint.tensor(other)
        return found

    def _of_carrier(self, checkpoint: "Checkpoint", carrier: int, transform: "Transform") -> "dict[str, Edit]":
        family, prefix, edits = checkpoint.family, f"{checkpoint.family.blocks}.{carrier}.", {}
        if family.scale is not None:
            edits[prefix + family.scale] = lambda scale: scale.new_ones(scale.shape)
            transform = self.behind_scale(checkpoint.tensor(prefix + family.scale), transform)
        downs = checkpoint.folded(carrier)
        if family.post_norm is not None:
            return edits | self._normed(checkpoint, downs, prefix, transform)
        for down in downs:
            edits |= self.edits_of(family, down, transform)
        return edits

    def behind_scale(self, scale: "torch.Tensor", transform: "Transform") -> "Transform":
        """Return the map of what comes before a layer scale s: diag(s) T."""
        return replace(transform, matrix=scale.to(transform.matrix)[:, None] * transform.matrix)

    def edits_of(self, family: "Family", down: str, transform: "Transform") -> "dict[str, Edit]":
        """Return the edits by T of a down projection of this name and of its bias, whatever follows it."""

        def weight(given: "torch.Tensor") -> "torch.Tensor":
            if family.is_transposed(down):
                return self.new_weight(given.mT, family, transform).mT.contiguous()
            return self.new_weight(given, family, transform).contiguous()

        return {down: weight, bias_of(down): lambda given: self.new_bias(given, transform).to(given)}

    def new_weight(self, given: "torch.Tensor", family: "Family", transform: "Transform") -> "torch.Tensor":
        """Return the new down projection [hidden, intermediate]."""
        return fold(given, transform.matrix)

    def new_bias(self, given: "torch.Tensor", transform: "Transform") -> "torch.Tensor":
        """Its new bias [hidden]."""
        return given.to(transform.matrix) @ transform.matrix

    def _normed(
        self, checkpoint: "Checkpoint", downs: Sequence[str], prefix: str, transform: "Transform"
    ) -> "dict[str, Edit]":
        family, norm = checkpoint.family, prefix + checkpoint.family.post_norm
        gains = family.gain_offset + checkpoint.tensor(norm).double()

        def directed(given: "torch.Tensor", down: str) -> "tuple[torch.Tensor, torch.Tensor]":
            before = given.to(transform.matrix.device).double()
            before = before.mT if family.is_transposed(down) else before
            return before, self.direction(before, gains, transform)

        @cache
        def sizes() -> "list[float]":
            """Return the sizes of all terms of M together, before and after: their proportions stay."""
            pairs = [directed(checkpoint.tensor(down), down) for down in downs]
            return [sum(float(pair[after].square().sum()) for pair in pairs) ** 0.5 for after in range(2)]

        def edit(down: str) -> "Edit":
            def weight(given: "torch.Tensor") -> "torch.Tensor":
                before, found = directed(given, down)
                old, new = (before.norm(), found.norm()) if len(downs) == 1 else sizes()
                found = found * (old / new)
                return (found.mT if family.is_transposed(down) else found).contiguous().to(given)

            return weight

        factor = family.multiplier
        if family.scalar is not None:
            factor *= float(checkpoint.tensor(prefix + family.scalar))
        gain = transform.gain / factor - family.gain_offset
        return {down: edit(down) for down in downs} | {norm: lambda given: given.new_full(given.shape, gain)}

    def direction(self, given: "torch.Tensor", gains: "torch.Tensor", transform: "Transform") -> "torch.Tensor":
        """Return the new down projection before a norm, up to its size: T^T diag(g) W in float64."""
        return transform.matrix.double().T @ (gains.to(given)[:, None] * given)
