"""The mechanism of a training by Adam: learning rates, clipped steps, and a state from which it goes on.

What a step does follows from its number, so that an interrupted training ends with the same bits: parameters and
Adam's moments are kept by the mechanism of unfinished fits (`resume`), with whatever else its owner needs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from replaceme.transforms.resume import State, Tensors

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # torch's names of what Adam remembers of a parameter
Parameters = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """The learning rates of a training: a linear rise over `warmup` steps, then constant, or down to 0 as named."""

    steps: int
    learning_rate: float
    warmup: int = 0
    shape: str = "cosine"

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return self.learning_rate * self._share(step)

    def _share(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.shape]


class Training:
    """Parameters by name with their optimiser, schedule and state; `done` steps lie behind, of this run or another."""

    def __init__(
        self,
        parameters: Parameters,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        state: State,
        clip: float | None = None,
    ) -> None:
        self.parameters, self.optimiser = parameters, optimiser
        self.schedule, self.state, self.clip = schedule, state, clip
        self.done = 0

    def restore(self) -> tuple[Tensors, dict[str, Any]] | None:
        """Go on from the state, and return what else was kept in it; None where there is none."""
        saved = self.state.read()
        if saved is None:
            return None
        tensors, record = saved
        restore(self.optimiser, self.parameters, tensors)
        self.done = record["done"]
        return saved

    def step(self) -> None:
        """Change the parameters by their gradients, of a norm of at most `clip`, and forget these."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.rate(self.done)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.done += 1

    def begin_again(self, learning_rate: float) -> None:
        """Forget all steps, whose parameters the owner has set back, and take another highest learning rate."""
        self.optimiser.state.clear()
        self.schedule, self.done = replace(self.schedule, learning_rate=learning_rate), 0

    def save(self, more: Callable[[], tuple[Tensors, dict[str, Any]]]) -> None:
        """Keep the state, with `more` tensors and facts, when it is time."""

        def content() -> tuple[Tensors, dict[str, Any]]:
            tensors, record = more()
            return {**memory(self.optimiser, self.parameters), **tensors}, {**record, "done": self.done}

        self.state.write(content)


def memory(optimiser: torch.optim.Optimizer, parameters: Parameters) -> Tensors:
    """Return the parameters and what Adam remembers of them, by `<what>/<name>`."""
    found: Tensors = {}
    for name, parameter in parameters.items():
        moments = optimiser.state.get(parameter, {})  # none for a weight that no token used
        found |= {f"parameter/{name}": parameter.detach()}
        found |= {f"{moment}/{name}": moments[moment] for moment in MOMENTS if moment in moments}
    return found


def restore(optimiser: torch.optim.Optimizer, parameters: Parameters, tensors: Tensors) -> None:
    """Set parameters and optimiser to what `memory` returned."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])
            kept = {one: tensors[f"{one}/{name}"] for one in MOMENTS if f"{one}/{name}" in tensors}
            if kept:
                # the number of steps lies where torch keeps it
                moved = {one: value.to("cpu" if one == "step" else parameter.device) for one, value in kept.items()}
                optimiser.state[parameter] = moved
