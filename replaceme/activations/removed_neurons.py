"""Neurons of removed blocks as the carrier's MLP can compute them, and which of them say most of what a fit misses.

Neuron k of block j computes `act(g_jk . n_j(h)) (u_jk . n_j(h))` of the residual stream h, n_j the norm before its MLP.
Norms without their gains and shifts are the same in all blocks, n_j(h) = gain_j * n(h) + shift_j. So where the carrier
c reads the stream, the neuron is one of the carrier's own kind, with other rows and biases:

    w . n_j(h) = (w * gain_j / gain_c) . n_c(h) + w . (shift_j - shift_c * gain_j / gain_c)

`Screen` scores every candidate k by what it alone takes off the residual e of a fit of the carrier's own neurons,
`|sum w c_k e|^2 / sum w c_k^2`, as a step of orthogonal matching pursuit does (Pati, Rezaiifar and Krishnaprasad 1993):
e has no part left that the own neurons explain, so no product of candidates and own neurons is formed, whose sums
would be as large as a Gram over all.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import Activations
from replaceme.activations.recycled_neurons import Recycled, activation_of
from replaceme.activations.targets import formed, rows_of, wanted_by, weights_of
from replaceme.core.errors import ReplaceMeError
from replaceme.placements.placement import bias_of

if TYPE_CHECKING:
    from replaceme.config.placement import Regression
    from replaceme.models.checkpoints import Checkpoint

OTHERWISE = "use a fit without neurons of removed blocks"  # `recycle_from: input`, or another method
SAME = 0.02  # of the energy of the own neurons, by which they may be computed otherwise (bfloat16 misses by 1e-4)


def neurons_of(checkpoint: "Checkpoint", block: int, carrier: int) -> Recycled:
    """Return all neurons of a block's MLP as those of the carrier's, in the type of the stored weights.

    Raises ReplaceMeError where the carrier cannot compute them: its norm has a gain of 0 where the block's has none, or
    the norms have shifts that its MLP has no biases to take.
    """
    family, where = checkpoint.family, f"{checkpoint.folder}: block {block}'s neurons in block {carrier}"
    ratio, shift = from_norm(checkpoint, family.mlp_norm, block, carrier)
    names = [name for name in (family.gate, family.up) if name is not None]
    rows: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    for name in dict.fromkeys(names):
        weight, bias = _projection(checkpoint, block, name)
        if bias is None and (shift != 0).any():
            raise ReplaceMeError(f"{where}: the norms have shifts, and {name} no bias to take them; {OTHERWISE}")
        parts = names.count(name)  # two where gate and up are one weight, above one another
        moved = None if bias is None else (bias.double() + weight.double() @ shift).to(bias.dtype).chunk(parts)
        scaled = (weight.double() * ratio).to(weight.dtype).chunk(parts)
        rows += zip(scaled, moved or [None] * parts, strict=True)
    (up, up_bias), (gate, gate_bias) = rows[-1], rows[0] if family.gate is not None else (None, None)
    return Recycled(torch.arange(len(up)), gate, up, _activation(checkpoint), gate_bias, up_bias)


def from_norm(checkpoint: "Checkpoint", norm: str, block: int, carrier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (ratio, shift) [hidden], float64: what a block's norm puts out is `ratio * carrier's + shift`.

    Raises ReplaceMeError where the carrier's norm has a gain of 0 and the block's has none.
    """
    gain, shift = _norm(checkpoint, norm, block)
    own_gain, own_shift = _norm(checkpoint, norm, carrier)
    lost = (own_gain == 0) & (gain != 0)
    if lost.any():
        raise ReplaceMeError(
            f"{checkpoint.folder}: rows of block {block} in block {carrier}: {int(lost.sum())} gains of its {norm} are "
            "0; use another carrier, or another fit"
        )
    ratio = torch.where(own_gain == 0, 0.0, gain / own_gain)
    return ratio, shift - own_shift * ratio


def _activation(checkpoint: "Checkpoint") -> str:
    from transformers.activations import ACT2FN

    name = activation_of(checkpoint.config)
    if name not in ACT2FN:
        raise ReplaceMeError(f"{checkpoint.folder}: config.json names no known activation; {OTHERWISE}")
    return name


def _norm(checkpoint: "Checkpoint", norm: str, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gains and shifts [hidden], float64, of a norm of a block, by the name of its weight in the block."""
    family = checkpoint.family
    name = f"{family.blocks}.{block}.{norm}"
    if name not in checkpoint.tensors:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {name}, the norm before a part; use another fit")
    gain = family.gain_offset + checkpoint.tensor(name).double()
    bias = bias_of(name)
    return gain, checkpoint.tensor(bias).double() if bias in checkpoint.tensors else torch.zeros_like(gain)


def _projection(checkpoint: "Checkpoint", block: int, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a weight [outputs, hidden] of a block's MLP and its bias, if it has one."""
    full = f"{checkpoint.family.blocks}.{block}.{name}"
    weight = checkpoint.tensor(full)
    bias = bias_of(full)
    stored = checkpoint.tensor(bias) if bias in checkpoint.tensors else None
    return weight.T.contiguous() if checkpoint.family.is_transposed(full) else weight, stored


class Screen:
    """Scores of the neurons of a cut's removed blocks, batch by batch.

    `pool` has those of each block; `own` those of the carrier, `fitted` float64 [intermediate, hidden] the fit of them.
    """

    def __init__(
        self,
        group: tuple[int, int],
        regression: "Regression",
        pool: Sequence[Recycled],
        own: Recycled,
        fitted: torch.Tensor,
    ) -> None:
        self.group, self.regression, self.pool, self.own, self.fitted = group, regression, pool, own, fitted
        self.wanted = wanted_by(regression, [group])
        self._placed: list[Recycled] = []  # moved to the device once, not at every batch
        self._cross: list[torch.Tensor] = []
        self._energy: list[torch.Tensor] = []

    def add(self, activations: Activations) -> None:
        """Add the rows of a batch; raises ReplaceMeError where the own neurons are not what their rows say."""
        m, terms = rows_of(self.regression, activations, *self.group)
        self.score(m, activations.mlp_input[self.group[0] - 1], formed(terms), activations.mask)

    def score(self, m: torch.Tensor, x: torch.Tensor, r: torch.Tensor, mask: torch.Tensor) -> None:
        """Add rows m of the own neurons, x of the MLP's input and r of the target where the mask is true; errors as in
        `add`.
        """
        weights, m, x = weights_of(self.regression, (r,)), m[mask], x[mask]
        missed = r[mask] - m.float() @ self.fitted.to(m.device, torch.float32)
        weight = torch.ones_like(missed[:, 0]) if weights is None else weights[mask].float()
        if not self._placed:
            self._check(m, x)
            sizes, kind = [(len(one.up), missed.shape[1]) for one in self.pool], {"dtype": torch.float64}
            self._placed = [one.to(x.device) for one in self.pool]
            self._cross = [torch.zeros(size, device=x.device, **kind) for size in sizes]
            self._energy = [torch.zeros(size[0], device=x.device, **kind) for size in sizes]
        for one, cross, energy in zip(self._placed, self._cross, self._energy, strict=True):
            c = one.outputs(x).float()
            cross += c.T @ (missed * weight[:, None])  # float32 within a batch: it ranks, and nothing is solved from it
            energy += (c.square() * weight[:, None]).sum(0)

    def _check(self, m: torch.Tensor, x: torch.Tensor) -> None:
        found, given = self.own.outputs(x).float(), m.float()
        if not (found - given).square().sum() <= SAME * given.square().sum():
            raise ReplaceMeError(
                f"block {self.group[0] - 1}: its MLP's neurons are more than projections and {self.own.activation}, so "
                f"none of another block can be put there; {OTHERWISE}"
            )

    def shortlist(self, count: int) -> Recycled:
        """Return the candidates with the highest scores, the first of equals first."""
        cross, energy = torch.cat(self._cross), torch.cat(self._energy)
        scores = cross.square().sum(1) / energy.clamp(min=torch.finfo(energy.dtype).tiny)
        best = scores.argsort(descending=True, stable=True)[:count].sort().values.cpu()
        return Recycled.join(self.pool).at(best, best)
