"""Recycled neurons: the least used neurons of the carrier's MLP are set to pass on linear features of the MLP's input.

A gated MLP computes a_j = act(x . gate_j) (x . up_j), x the normalised residual stream. With a gate g for which x . g
is nearly the same for every token (a norm leaves x a nearly constant direction) and so large that act is the identity
there, a_j is about |g| (x . up_j): linear in x. From such neurons a new down projection makes a map of the residual
stream beside that of the MLP, without any new parameter.

Which features: of the least-squares map from [a, x] to the target, the part from x, by the leading directions of what
it explains. Which neurons: those whose row of that map explains least. Both from one set of sums over [a, x].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_metadata, load_tensors, save_groups
from replaceme.models.config_defaults import value_of

STRENGTH = 8.0  # of the gate, where silu and gelu differ from the identity by less than 0.3%
CHOICE_RIDGE = 0.01  # of the map from which neurons and features are chosen, in units of the mean diagonal
GATE_RIDGE = 1e-6
TENSORS = ("neurons", "gate", "up")


@dataclass(frozen=True)
class Recycled:
    """`neurons` int64 [k] whose activations become `act(x . gate) (x . up_j)`; gate [hidden], up [k, hidden]."""

    neurons: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    activation: str

    def apply(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the inputs of the down projection [..., intermediate] with the changed neurons, from x [...,
        hidden].
        """
        from transformers.activations import ACT2FN

        gate, up = self.gate.to(x), self.up.to(x)
        changed = a.clone()
        changed[..., self.neurons.to(a.device)] = ACT2FN[self.activation](x @ gate)[..., None] * (x @ up.T)
        return changed

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save."""
        return {name: getattr(self, name) for name in TENSORS}


def choose_neurons(statistics: Statistics, share: float, activation: str, dtype: torch.dtype) -> Recycled:
    """Choose the neurons to recycle, `share` of them (at most hidden), and their new features, from sums over rows [a,
    x].

    The result is on the CPU, gate and up rounded to `dtype`, that of the weights they go into. Raises ReplaceMeError
    for an activation that does not become the identity, and for statistics of other rows.
    """
    hidden = statistics.hidden_size
    intermediate = statistics.width - hidden
    if intermediate < 1:
        raise ReplaceMeError("recycling needs the sums over inputs of the down projection and of the MLP together")
    _check_activation(activation)
    count = max(1, min(round(share * intermediate), hidden, intermediate))
    inputs = statistics.gram[intermediate:, intermediate:]
    energy = float(statistics.gram.diagonal()[:intermediate].mean())
    scale = torch.ones(statistics.width, dtype=torch.float64, device=inputs.device)
    scale[intermediate:] = (energy / inputs.diagonal().mean()).sqrt()  # neurons and channels alike to the ridge
    best = scale[:, None] * _ridge(
        scale[:, None] * statistics.gram * scale, scale[:, None] * statistics.cross, CHOICE_RIDGE
    )
    explained = best[:intermediate].square().sum(1) * statistics.gram.diagonal()[:intermediate]
    neurons = explained.argsort(stable=True)[:count].sort().values
    linear = best[intermediate:]
    _, directions = torch.linalg.eigh(linear.T @ inputs @ linear)
    up = linear @ directions[:, -count:]
    size = ((up * (inputs @ up)).sum(0) / statistics.total_weight).clamp(min=1e-30).sqrt()
    up = up / size * (energy / statistics.total_weight).sqrt() / STRENGTH
    gate = STRENGTH * _ridge(inputs, statistics.sum_mlp_output[intermediate:, None], GATE_RIDGE)[:, 0]
    chosen = (neurons, gate.to(dtype), up.T.contiguous().to(dtype))
    return Recycled(*(one.cpu() for one in chosen), activation)


def save_recycled(path: str | Path, groups: Sequence[Recycled], metadata: dict[str, Any]) -> None:
    """Write the neurons of every group of a cut, atomically, with JSON-able metadata."""
    save_groups(path, [one.tensors() for one in groups], {**metadata, "activation": groups[0].activation})


def load_recycled(path: str | Path) -> tuple[list[Recycled], dict[str, Any]]:
    """Read a file of `save_recycled` as (neurons of each group, metadata); raises ReplaceMeError on anything else."""
    metadata = load_metadata(path)
    found = []
    for group in range(len(metadata.get("groups", []))):
        tensors, _ = load_tensors(path, group)
        if set(tensors) != set(TENSORS):
            raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, no recycled neurons; delete it and run again")
        found.append(Recycled(**tensors, activation=metadata["activation"]))
    return found, {key: value for key, value in metadata.items() if key != "activation"}


def activation_of(config: dict[str, Any]) -> str:
    """Return the name of an MLP's activation function, by a config.json or else its class."""
    named = config.get("hidden_activation") or config.get("hidden_act")
    left_out = (value_of(config, key, "config.json") for key in ("hidden_activation", "hidden_act"))
    return named or next(filter(None, left_out), "")


def _check_activation(name: str) -> None:
    from transformers.activations import ACT2FN

    if name not in ACT2FN or abs(float(ACT2FN[name](torch.tensor(STRENGTH))) - STRENGTH) > 0.01 * STRENGTH:
        raise ReplaceMeError(f"activation {name!r} does not become the identity, so no neuron can be recycled; drop it")


def _ridge(gram: torch.Tensor, right: torch.Tensor, relative: float) -> torch.Tensor:
    system = gram.clone()
    system.diagonal().add_(relative * gram.diagonal().mean())
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))
