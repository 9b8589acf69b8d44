"""Recycled neurons: the least used neurons of the carrier's MLP are set to pass on linear features of the MLP's input.

A gated MLP computes a_j = act(x . gate_j) (x . up_j), x the normalised residual stream. With a gate g for which x . g
is nearly the same for every token (a norm leaves x a nearly constant direction) and so large that act is the identity
there, a_j is about |g| (x . up_j): linear in x. From such neurons a new down projection makes a map of the residual
stream beside that of the MLP, without any new parameter.

Which features: of the least-squares map from [a, x] to the target, the part from x, by the leading directions of what
it explains. Which neurons: those whose row of that map explains least. Both from one set of sums over [a, x].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from replaceme.activations.cholesky import factored
from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_metadata, load_tensors, save_groups
from replaceme.models.config_defaults import value_of

STRENGTH = 8.0  # of the gate, where silu and gelu differ from the identity by less than 0.3%
CHOICE_RIDGE = 0.01  # of the map from which neurons and features are chosen, in units of the mean diagonal
GATE_RIDGE = 1e-6
ACTIVATIONS = ("hidden_activation", "hidden_act", "activation_function")  # entries of config.json
TENSORS = ("neurons", "gate", "up", "gate_bias", "up_bias")
NEEDED = {"neurons", "up"}


@dataclass(frozen=True)
class Recycled:
    """`neurons` int64 [k] whose activations become `act(x . gate_j + gate_bias_j) (x . up_j + up_bias_j)`.

    up [k, hidden]; gate [k, hidden], or [1, hidden] where all have the same, or None in an MLP without gates, whose
    activations are `act(x . up_j + up_bias_j)`; the biases [k], or None for zero.
    """

    neurons: torch.Tensor
    gate: torch.Tensor | None
    up: torch.Tensor
    activation: str
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None

    def outputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activations of the changed neurons [..., k], from x [..., hidden], in its type."""
        from torch.nn.functional import linear
        from transformers.activations import ACT2FN

        moved = {name: None if one is None else one.to(x) for name, one in self._rows().items()}
        up, act = linear(x, moved["up"], moved["up_bias"]), ACT2FN[self.activation]
        return act(up) if self.gate is None else act(linear(x, moved["gate"], moved["gate_bias"])) * up

    def apply(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the inputs of the down projection [..., intermediate] with the changed neurons, from x [...,
        hidden].
        """
        changed = a.clone()
        changed[..., self.neurons.to(a.device)] = self.outputs(x)
        return changed

    def at(self, neurons: torch.Tensor, rows: torch.Tensor) -> "Recycled":
        """Return some of the rows, as the activations of other neurons; each neuron has a gate of its own."""
        kept = {name: None if one is None else one[rows] for name, one in self._rows().items()}
        return Recycled(neurons, activation=self.activation, **kept)

    def to(self, device: torch.device | str) -> "Recycled":
        """Return the same on another device."""
        return replace(self, **{name: one.to(device) for name, one in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors to save."""
        return {name: one for name, one in {"neurons": self.neurons, **self._rows()}.items() if one is not None}

    def _rows(self) -> dict[str, torch.Tensor | None]:
        return {name: getattr(self, name) for name in TENSORS[1:]}

    @staticmethod
    def of(tensors: dict[str, torch.Tensor], activation: str, path: str | Path) -> "Recycled":
        """Return what `tensors` gave; raises ReplaceMeError on anything else, with a path in front."""
        if not NEEDED <= set(tensors) <= set(TENSORS):
            raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, no recycled neurons; delete it and run again")
        return Recycled(**{"gate": None, **tensors}, activation=activation)

    @staticmethod
    def join(parts: "Sequence[Recycled]") -> "Recycled":
        """Return the neurons of several, one after the other; all with the same kinds of rows, and gates of their
        own.
        """
        first = parts[0].tensors()
        joined = {name: torch.cat([getattr(one, name) for one in parts]) for name in first}
        return Recycled(**{"gate": None, **joined}, activation=parts[0].activation)


def choose_neurons(statistics: Statistics, share: float, activation: str, dtype: torch.dtype) -> Recycled:
    """Choose the neurons to recycle, `share` of them (at most hidden), and their new features, from sums over rows [a,
    x].

    The result is on the CPU, gate and up rounded to `dtype`, that of the weights they go into. Raises ReplaceMeError
    for an activation that does not become the identity, for statistics of other rows, and as `factored`.
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
    # neurons and channels alike to the ridge
    scale[intermediate:] = (energy / inputs.diagonal().mean().clamp(min=1e-30)).sqrt()
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
    chosen = (neurons, gate[None].to(dtype), up.T.contiguous().to(dtype))
    return Recycled(*(one.cpu() for one in chosen), activation)


def save_recycled(path: str | Path, groups: Sequence[Recycled], metadata: dict[str, Any]) -> None:
    """Write the neurons of every group of a cut, atomically, with JSON-able metadata."""
    save_groups(path, [one.tensors() for one in groups], {**metadata, "activation": groups[0].activation})


def load_recycled(path: str | Path) -> tuple[list[Recycled], dict[str, Any]]:
    """Read a file of `save_recycled` as (neurons of each group, metadata); raises ReplaceMeError on anything else."""
    metadata = load_metadata(path)
    found = []
    for group in range(len(metadata.get("groups", []))):
        found.append(Recycled.of(load_tensors(path, group)[0], metadata["activation"], path))
    return found, {key: value for key, value in metadata.items() if key != "activation"}


def activation_of(config: dict[str, Any]) -> str:
    """Return the name of an MLP's activation function, by a config.json or else its class."""
    named = next(filter(None, map(config.get, ACTIVATIONS)), None)
    left_out = (value_of(config, key, "config.json") for key in ACTIVATIONS)
    return named or next(filter(None, left_out), "")


def _check_activation(name: str) -> None:
    from transformers.activations import ACT2FN

    if name not in ACT2FN or abs(float(ACT2FN[name](torch.tensor(STRENGTH))) - STRENGTH) > 0.01 * STRENGTH:
        raise ReplaceMeError(
            f"activation {name!r} does not become the identity, so no neuron can be recycled; drop recycle"
        )


def _ridge(gram: torch.Tensor, right: torch.Tensor, relative: float) -> torch.Tensor:
    return torch.cholesky_solve(right, factored(gram, relative * float(gram.diagonal().mean())))
