"""The KL divergence of next-token distributions: how far a model's predictions are from those of another, per token.

KL(p || q) = sum_v p(v) (log p(v) - log q(v)),   p of the one model, q of the other, v over the vocabulary

Values and gradients are formed from the states before the heads, a part of the tokens at a time, so that logits of all
tokens never exist; each part by one launch of `kernels.divergence`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from replaceme.activations.gradients import backward
from replaceme.activations.head import Head
from replaceme.calibration.tokens import Tokens
from replaceme.kernels.divergence import LEAST, divergence

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model of what follows each unmasked token, as the states [tokens, hidden] before its head."""

    head: Head
    states: torch.Tensor

    @staticmethod
    def of(model: "nn.Module | Head", batch: Tokens) -> "Predictions":
        """Run a batch through a model; gradients flow to the states unless the caller stops them."""
        head = model if isinstance(model, Head) else Head(model)
        return Predictions(head, head.states(batch))

    def log_probabilities(self) -> torch.Tensor:
        """Return log-probabilities of what follows each token, [tokens, vocabulary] float32, at least LEAST."""
        return self.head.logits(self.states).float().log_softmax(-1).clamp(min=LEAST)


def log_probabilities(model: "nn.Module", batch: Tokens) -> torch.Tensor:
    """Return log-probabilities of what follows each unmasked token, [tokens, vocabulary] float32, at least LEAST."""
    return Predictions.of(model, batch).log_probabilities()


def apart(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Return KL(p || q) of each token in nats, [tokens], from log-probabilities [tokens, vocabulary]."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def divergences(whole: Predictions, other: Predictions) -> torch.Tensor:
    """Return KL(whole || other) of each token in nats, [tokens] float32, without gradients."""
    with torch.no_grad():
        return torch.cat([_compared(whole, p, other.head.logits(q))[0] for p, q in _pairs(whole, other)])


def descend(whole: Predictions, other: Predictions, weight: float) -> torch.Tensor:
    """Return KL(whole || other) of each token, and add the gradient of their sum times `weight` to all that leads to
    `other`.

    Within `repeatable`. Raises ReplaceMeError where torch has no deterministic way.
    """
    values, slopes = [], []
    for p, q in _pairs(whole, other):
        part = q.detach().requires_grad_()
        logits = other.head.logits(part)
        value, slope = _compared(whole, p, logits.detach(), weight)
        backward(logits, slope)
        values.append(value)
        slopes.append(part.grad)
    backward(other.states, torch.cat(slopes))
    return torch.cat(values)


def _pairs(whole: Predictions, other: Predictions) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = min(whole.head.rows, other.head.rows)
    yield from zip(whole.states.split(rows), other.states.split(rows), strict=True)


def _compared(
    whole: Predictions, states: torch.Tensor, logits: torch.Tensor, weight: float | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the divergence [tokens] of logits from those of states of the whole model, and with a weight its gradient
    times that.
    """
    with torch.no_grad():
        return divergence(whole.head.logits(states).to(logits.device), logits, weight)
