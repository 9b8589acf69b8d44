"""Fit the maps of a cut end to end: by the KL divergence of next-token distributions, whole model against shortened.

    minimise over T  mean over tokens of sum_v p(v) (log p(v) - log q(v)),   p of the whole model, q of the shortened

All weights are frozen; the maps alone are parameters, of all groups of a cut together, float32, from their closed
forms. Adam with a linear warm-up and a cosine decay. A part of the text is held out: what has the least divergence
there is kept, be it the start, and where it has not fallen for a while the training ends. A rate that suits one map can
be too high for several, or for a good start: where the first look finds the divergence higher than at the start, the
training begins again at a third of it. How the two models run is said in `pair`. Whatever a step does follows from its
number and the rate, so an interrupted fit ends with the same bits.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from replaceme.activations.gradients import repeatable
from replaceme.activations.text_order import TextOrder
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import is_full
from replaceme.core.progress import bar
from replaceme.fitting.pair import Changed, Pair
from replaceme.transforms.resume import State, Tensors
from replaceme.transforms.training import Schedule, Training

if TYPE_CHECKING:
    from torch import nn

    from replaceme.config.solvers import TrainedConfig
    from replaceme.fitting.passes import Passes
    from replaceme.transforms.transform import Transform

log = logging.getLogger(__name__)
HELD_OUT = 16  # sequences for each one that is held out
LOOKS = 10  # at the held-out text, in a whole training
PATIENCE = 3  # looks without a new best, after which it ends
WARM_UP = 0.1  # of the steps
LONGEST_WARM_UP = 20  # steps
BETAS = (0.9, 0.98)
CLIP = 1.0  # largest norm of a gradient
LOWER = 3  # times, is the rate of a training that begins again
AGAIN = 3  # times, at most


def refine(
    passes: "Passes",
    config: "TrainedConfig",
    groups: Sequence[tuple[int, int]],
    transforms: "Sequence[Transform]",
    changed: Changed = nullcontext,
) -> "list[Transform]":
    """Return the maps of the groups after the training, or as they were if that is better; reports say how it went.

    `changed`: a context in which the shortened model has other changes than its maps.
    `kl` is the divergence in nats per token on the held-out text, `kl_start` that of the closed forms, `kl_curve` has
    [step, kl] of every look. Raises ReplaceMeError for text too short, for a divergence that is not finite, and where
    a GPU has too little memory.
    """
    text = _Text.split(passes.tokens, config)
    pair = Pair(passes, groups, transforms, config.kl_checkpointing, changed)
    with _frozen(passes.headed), repeatable():
        try:
            pair.share(text.used(config.kl_steps), config.kl_sequences)
            fit = _Fit(pair, config, text, passes.state or State())
            fit.run()
        except RuntimeError as error:
            if not is_full(error):
                raise
            more = "" if config.kl_checkpointing else "set `kl_checkpointing: true` or "
            raise ReplaceMeError(
                f"fit: a step of objective kl takes more memory than the GPU has; {more}lower `kl_sequences`"
            ) from error
    return [
        replace(one, matrix=matrix.double().cpu(), report=fit.report(one))
        for one, matrix in zip(transforms, fit.best, strict=True)
    ]


class _Text:
    """The numbers of the sequences to train on, by step, and of those held out, the last ones."""

    def __init__(self, count: int, held_out: int, config: "TrainedConfig") -> None:
        self.size = config.kl_sequences
        self.order = TextOrder(count - held_out, config.order_seed)
        self.held_out = list(range(count - held_out, count))

    @staticmethod
    def split(tokens: Tokens, config: "TrainedConfig") -> "_Text":
        """Return the parts of a text; raises ReplaceMeError for one that cannot be trained on."""
        if not isinstance(tokens, Tokens):
            raise ReplaceMeError("fit: objective kl is of the next token: it needs text, not images")
        if len(tokens) < 2:
            raise ReplaceMeError("fit: objective kl needs two calibration sequences or more, as one is held out")
        return _Text(len(tokens), max(1, len(tokens) // (HELD_OUT + 1)), config)

    def of_step(self, step: int) -> list[int]:
        """Return the sequences of a step, from 0."""
        return self.order.places(step * self.size, (step + 1) * self.size)

    def looked_at(self) -> list[list[int]]:
        """Return the batches of those held out."""
        return [self.held_out[k : k + self.size] for k in range(0, len(self.held_out), self.size)]

    def used(self, steps: int) -> list[int]:
        """Return the sequences of all steps and those held out, in order."""
        return sorted({*self.order.places(0, steps * self.size), *self.held_out})


class _Fit:
    """A training of the maps of a pair; `best` are those with the least divergence on held-out text so far."""

    def __init__(self, pair: Pair, config: "TrainedConfig", text: _Text, state: State) -> None:
        self.pair, self.text, self.steps, self.asked = pair, text, config.kl_steps, config.kl_learning_rate
        self.tokens = int(pair.passes.tokens[torch.tensor(text.held_out)].count)
        parameters = {str(number): one for number, one in enumerate(pair.parameters)}
        warm_up = max(1, min(LONGEST_WARM_UP, round(WARM_UP * self.steps)))
        schedule = Schedule(self.steps, config.kl_learning_rate, warm_up)
        optimiser = torch.optim.Adam(pair.parameters, betas=BETAS)
        # what is kept comes from other batches, and so has other bits
        self.training = Training(parameters, optimiser, schedule, state.of(kept=pair.kept), CLIP)
        self.best = [one.detach().clone() for one in pair.parameters]
        self.curve: list[tuple[int, float]] = []

    def run(self) -> None:
        """Train to the end, from where a state was left."""
        self._restore()
        every = math.ceil(self.steps / LOOKS)
        if not self.curve:
            self._look(0)
        with closing(bar(total=self.steps, initial=self.training.done, desc="kl", unit="step")) as shown:
            while self.training.done < self.steps and not self._is_over():
                self._step(self.text.of_step(self.training.done))
                shown.update()
                if self.training.done % every == 0 or self.training.done == self.steps:
                    self._look(self.training.done)
                    if self._was_too_fast():
                        self._begin_again()
                        shown.reset()
                self.training.save(self._kept)
        log.info("kl: %.4f nats per token on held-out text, %.4f at the start", self.kl, self.curve[0][1])

    @property
    def kl(self) -> float:
        """Least divergence that was seen."""
        return min(value for _, value in self.curve)

    @property
    def rate(self) -> float:
        """Highest learning rate of the training, less than what was asked for where it began again."""
        return self.training.schedule.learning_rate

    def report(self, start: "Transform") -> dict[str, Any]:
        """Return what the report of a map says of the training; `start` is its closed form."""
        return {
            **start.report,
            "solver": "kl",
            "kl": self.kl,
            "kl_start": self.curve[0][1],
            "kl_curve": [list(point) for point in self.curve],
            "kl_tokens": self.tokens,
            "learning_rate": self.rate,
            "steps": self.training.done,
            "closed_form": start.report,
        }

    def _step(self, numbers: list[int]) -> None:
        self.pair.descend(numbers)
        self.training.step()

    def _look(self, step: int) -> None:
        """Measure the held-out text, and keep the parameters if they are the best."""
        value = sum(float(self.pair.divergence(one).double().sum()) for one in self.text.looked_at()) / self.tokens
        if not math.isfinite(value):
            raise ReplaceMeError(f"fit: the divergence after {step} steps is {value}; lower `kl_learning_rate`")
        if not self.curve or value < self.kl:
            self.best = [one.detach().clone() for one in self.pair.parameters]
        self.curve.append((step, value))

    def _is_over(self) -> bool:
        """Return whether the last looks have found nothing better."""
        values = [value for _, value in self.curve]
        return len(values) > PATIENCE and min(values[:-PATIENCE]) <= min(values[-PATIENCE:])

    def _was_too_fast(self) -> bool:
        """Return whether the first look at a training found it worse than its start, and it may begin again."""
        worse = len(self.curve) == 2 and self.curve[1][1] > self.curve[0][1]
        return worse and round(self.asked / self.rate) < LOWER**AGAIN

    def _begin_again(self) -> None:
        """Go back to the start, with a lower rate."""
        rate = self.rate / LOWER
        (_, start), (step, value) = self.curve
        log.info("kl: %.4f after %d steps, %.4f at the start: again, at a rate of %.1e", value, step, start, rate)
        with torch.no_grad():
            for parameter, best in zip(self.pair.parameters, self.best, strict=True):
                parameter.copy_(best)
        self.training.begin_again(rate)
        self.curve = self.curve[:1]

    def _kept(self) -> tuple[Tensors, dict[str, Any]]:
        best = {f"best/{number}": one for number, one in enumerate(self.best)}
        return best, {"curve": [list(point) for point in self.curve], "learning_rate": self.rate}

    def _restore(self) -> None:
        saved = self.training.restore()
        if saved is not None:
            tensors, record = saved
            self.training.schedule = replace(self.training.schedule, learning_rate=record["learning_rate"])
            self.curve = [tuple(point) for point in record["curve"]]
            self.best = [tensors[f"best/{number}"].to(one.device) for number, one in enumerate(self.best)]


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
