"""Fit the maps of a cut end to end: by the KL divergence of next-token distributions, whole model against shortened.

    minimise over T  mean over tokens of sum_v p(v) (log p(v) - log q(v)),   p of the whole model, q of the shortened

All weights are frozen; the maps alone are parameters, of all groups of a cut together, float32, from their closed
forms. Adam with a linear warm-up and a cosine decay. A part of the text is held out: what has the least divergence
there is kept, be it the start, and where it has not fallen for a while the training ends.

The blocks before the first carrier are the same in both models: they run once a step, for the whole model, and the
shortened one begins with what they put out (unless its logits show that something else goes past them). Whatever a step
does follows from its number, so an interrupted fit ends with the same bits.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import divergences, log_probabilities, logits
from replaceme.activations.gradients import backward, repeatable
from replaceme.activations.hooks import skipped
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import bar
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.resume import State, Tensors
from replaceme.transforms.training import Schedule, Training

if TYPE_CHECKING:
    from torch import nn

    from replaceme.config.fits import FitConfig
    from replaceme.fitting.fit_cut import Passes
    from replaceme.models.family import Family
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
HELD_OUT = 16  # sequences for each one that is held out
LOOKS = 10  # at the held-out text, in a whole training
PATIENCE = 3  # looks without a new best, after which it ends
WARM_UP = 0.1  # of the steps
SAME = 1e-3  # of the largest logit, by which two ways to run a model may differ


def refine(
    passes: "Passes", config: "FitConfig", groups: Sequence[tuple[int, int]], transforms: "Sequence[Transform]"
) -> "list[Transform]":
    """Return the maps of the groups after the training, or as they were if that is better; reports say how it went.

    `kl` is the divergence in nats per token on the held-out text, `kl_start` that of the closed forms, `kl_curve` has
    [step, kl] of every look. Raises ReplaceMeError for text too short, and for a divergence that is not finite.
    """
    pair = Pair(passes.headed, passes.family, groups, transforms)
    fit = _Fit(pair, config, _split(passes.tokens), passes.state or State())
    with _frozen(passes.headed), repeatable():
        fit.run()
    return [
        replace(one, matrix=matrix.double().cpu(), report=fit.report(one))
        for one, matrix in zip(transforms, fit.best, strict=True)
    ]


class Pair:
    """A model and the same one shortened, with the maps of its groups as `parameters` [width, hidden], float32."""

    def __init__(
        self,
        model: "nn.Module",
        family: "Family",
        groups: Sequence[tuple[int, int]],
        transforms: "Sequence[Transform]",
    ) -> None:
        self.model, self.family, self.groups, self.transforms = model, family, groups, transforms
        self.blocks = family.block_modules(model.base_model)
        self.first = min(start for start, _ in groups) - 1  # carrier
        self.parameters = [
            one.matrix.to(next(self.blocks[start - 1].parameters()).device, torch.float32).clone().requires_grad_()
            for one, (start, _) in zip(transforms, groups, strict=True)
        ]
        self.shares: bool | None = None  # whether the shortened model can begin with the first carrier

    def divergence(self, batch: Tokens) -> torch.Tensor:
        """Return the KL divergence of each unmasked token, [tokens] float32; gradients flow to the parameters."""
        batch = trimmed(batch)
        seen: list[torch.Tensor] = []
        with torch.no_grad(), _watching(self.blocks[self.first], seen):
            whole = log_probabilities(self.model, batch)
        with self._shortened(seen[0] if self._can_share(batch, seen[0]) else None):
            short = log_probabilities(self.model, batch)
        return divergences(whole, short)

    def _can_share(self, batch: Tokens, state: torch.Tensor) -> bool:
        """Return whether blocks before the first carrier can be left out, by the logits of the first batch."""
        if self.shares is None:
            with torch.no_grad():
                found = []
                for given in (None, state):
                    with self._shortened(given):
                        found.append(logits(self.model, batch))
            self.shares = float((found[0] - found[1]).abs().max()) <= SAME * float(found[0].abs().max())
        return self.shares

    @contextmanager
    def _shortened(self, state: torch.Tensor | None) -> Iterator[None]:
        """Run without the groups within the block, with `state` as the input of the first carrier if it is given."""
        given = [replace(one, matrix=p) for one, p in zip(self.transforms, self.parameters, strict=True)]
        with ExitStack() as stack:
            if state is not None:
                for block in self.blocks[: self.first]:
                    stack.callback(skipped(block, self.family))
                stack.callback(_beginning_with(self.blocks[self.first], state))
            stack.enter_context(shortened(self.model.base_model, self.family, self.groups, given))
            yield


class _Fit:
    """A training of the maps of a pair; `best` are those with the least divergence on held-out text so far."""

    def __init__(self, pair: Pair, config: "FitConfig", texts: tuple[Tokens, Tokens], state: State) -> None:
        self.pair, self.config = pair, config
        self.text, self.held_out = texts
        parameters = {str(number): one for number, one in enumerate(pair.parameters)}
        schedule = Schedule(config.kl_steps, config.kl_learning_rate, max(1, round(WARM_UP * config.kl_steps)))
        self.training = Training(parameters, torch.optim.Adam(pair.parameters), schedule, state)
        self.best = [one.detach().clone() for one in pair.parameters]
        self.curve: list[tuple[int, float]] = []

    def run(self) -> None:
        """Train to the end, from where a state was left."""
        self._restore()
        steps, order = self.config.kl_steps, TextOrder(len(self.text), self.config.order_seed)
        every = max(1, steps // LOOKS)
        if not self.curve:
            self._look(0)
        with closing(bar(total=steps, initial=self.training.done, desc="kl", unit="step")) as shown:
            while self.training.done < steps and not self._is_over():
                [batch] = order.batches(self.text, self.training.done, self.config.kl_sequences)
                self._step(batch)
                shown.update()
                if self.training.done % every == 0 or self.training.done == steps:
                    self._look(self.training.done)
                self.training.save(self._kept)
        log.info("kl: %.4f nats per token on held-out text, %.4f at the start", self.kl, self.curve[0][1])

    @property
    def kl(self) -> float:
        """Least divergence that was seen."""
        return min(value for _, value in self.curve)

    def report(self, start: "Transform") -> dict[str, Any]:
        """Return what the report of a map says of the training; `start` is its closed form."""
        return {
            **start.report,
            "solver": "kl",
            "kl": self.kl,
            "kl_start": self.curve[0][1],
            "kl_curve": [list(point) for point in self.curve],
            "kl_tokens": self.held_out.count,
            "steps": self.training.done,
            "closed_form": start.report,
        }

    def _step(self, batch: Tokens) -> None:
        backward(self.pair.divergence(batch).mean())
        self.training.step()

    def _look(self, step: int) -> None:
        """Measure the held-out text, and keep the parameters if they are the best."""
        total = 0.0
        with torch.no_grad():
            for batch in self.held_out.batches(self.config.kl_sequences):
                total += float(self.pair.divergence(batch).double().sum())
        value = total / self.held_out.count
        if not math.isfinite(value):
            raise ReplaceMeError(f"fit: the divergence after {step} steps is {value}; lower `kl_learning_rate`")
        if not self.curve or value < self.kl:
            self.best = [one.detach().clone() for one in self.pair.parameters]
        self.curve.append((step, value))

    def _is_over(self) -> bool:
        """Return whether the last looks have found nothing better."""
        values = [value for _, value in self.curve]
        return len(values) > PATIENCE and min(values[:-PATIENCE]) <= min(values[-PATIENCE:])

    def _kept(self) -> tuple[Tensors, dict[str, Any]]:
        best = {f"best/{number}": one for number, one in enumerate(self.best)}
        return best, {"curve": [list(point) for point in self.curve]}

    def _restore(self) -> None:
        saved = self.training.restore()
        if saved is not None:
            tensors, record = saved
            self.curve = [tuple(point) for point in record["curve"]]
            self.best = [tensors[f"best/{number}"].to(one.device) for number, one in enumerate(self.best)]


def _split(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """Return the sequences to train on and those held out, the last ones."""
    if not isinstance(tokens, Tokens):
        raise ReplaceMeError("fit: objective kl is of the next token: it needs text, not images")
    if len(tokens) < 2:
        raise ReplaceMeError("fit: objective kl needs two calibration sequences or more, as one is held out")
    count = max(1, len(tokens) // (HELD_OUT + 1))
    return tokens.first(len(tokens) - count), tokens[-count:]


@contextmanager
def _frozen(model: "nn.Module") -> Iterator[None]:
    """Take the weights of a model out of what gradients are computed for, within the block."""
    trained = [one for one in model.parameters() if one.requires_grad]
    for one in trained:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in trained:
            one.requires_grad_(True)


@contextmanager
def _watching(block: "nn.Module", seen: list[torch.Tensor]) -> Iterator[None]:
    """Note the states that a block is given within the block of code."""

    def note(_: "nn.Module", inputs: tuple, named: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["hidden_states"])

    handle = block.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _beginning_with(block: "nn.Module", state: torch.Tensor) -> Any:
    """Give a block a state in place of the one that it would get; returns what undoes it."""

    def give(_: "nn.Module", inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return ((state, *inputs[1:]), named) if inputs else (inputs, {**named, "hidden_states": state})

    return block.register_forward_pre_hook(give, with_kwargs=True).remove
