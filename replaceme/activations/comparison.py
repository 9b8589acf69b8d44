"""Compare models with a whole one on text: how far their predictions are from its, and what each loses on the text.

Divergence and loss of a model come from the same forward pass, and the whole model runs once a batch, however many
models it is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import Predictions, apart, log_probabilities
from replaceme.activations.head import Head
from replaceme.activations.language_loss import are_counted, counted_tokens, loss_batches
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.memory import free_memory
from replaceme.core.progress import progress

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.25  # of the free host memory, for predictions that are kept
Predict = Callable[[Tokens], torch.Tensor]  # log-probabilities [tokens, vocabulary] of a batch's unmasked tokens


@dataclass(frozen=True)
class Compared:
    """Sums over the tokens of each sequence, [sequences] each, float64 on the CPU, of one model.

    `divergence` is KL(whole || model) in nats, over `tokens` unmasked ones; `loss` the language-model loss in nats,
    over the `counted` ones that follow another.
    """

    divergence: torch.Tensor
    tokens: torch.Tensor
    loss: torch.Tensor
    counted: torch.Tensor

    @property
    def mean_divergence(self) -> float:
        """Mean over tokens, nats."""
        return float(self.divergence.sum() / self.tokens.sum())

    @property
    def mean_loss(self) -> float:
        """Mean over counted tokens, nats."""
        return float(self.loss.sum() / self.counted.sum())


class Kept:
    """The predictions of a model with its head for the batches of a text: each runs once, and what goes into the head
    is kept in host memory as far as SHARE of that has room.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._head = Head(model)
        self._states: dict[str, torch.Tensor] = {}
        self._room = SHARE * free_memory("cpu")

    def __call__(self, batch: Tokens) -> torch.Tensor:
        """Return the log-probabilities [tokens, vocabulary] of a batch's unmasked tokens."""
        name = batch.digest()
        if name in self._states:
            states = self._states[name].to(next(self._head.model.parameters()).device)
            return Predictions(self._head, states).log_probabilities()
        found = Predictions.of(self._head, batch)
        self._room -= found.states.nbytes
        if self._room > 0:
            self._states[name] = found.states.cpu()
        return found.log_probabilities()


def compare(
    whole: "nn.Module", others: Sequence[Predict], tokens: Tokens, description: str, predict: Predict | None = None
) -> list[Compared]:
    """Return the sums of a model with its head, whose divergence from itself is zero, and then of each other one.

    `predict` gives the predictions of the whole model in another way than by running it once more.
    At most two models' log-probabilities of one batch of `loss_batches` are held at a time. Raises ReplaceMeError where
    no token follows another, for models of another vocabulary, and for sums that are not finite.
    """
    counted_tokens(tokens)
    predict = predict or partial(log_probabilities, whole)
    parts: list[list[Compared]] = [[] for _ in range(len(others) + 1)]
    for batch in map(trimmed, progress(loss_batches(whole, tokens), description, unit="batch")):
        with torch.inference_mode():
            log_p = predict(batch)
            parts[0].append(_sums(batch, log_p, None))
            for part, other in zip(parts[1:], others, strict=True):
                part.append(_sums(batch, _alike(other(batch).to(log_p.device), log_p), log_p))
    return [_joined(part) for part in parts]


def _alike(log_q: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """Return log q; raises ReplaceMeError where its vocabulary is not that of log p."""
    if log_q.shape != log_p.shape:
        raise ReplaceMeError(
            f"divergence: one model predicts {log_p.shape[1]} tokens, the other {log_q.shape[1]}; compare models of "
            "one vocabulary"
        )
    return log_q


def _sums(batch: Tokens, log_q: torch.Tensor, log_p: torch.Tensor | None) -> Compared:
    """Return the sums of each sequence of a batch; without log p the divergence is zero."""
    lengths = batch.mask.sum(1)
    divergence = torch.zeros(len(batch), dtype=torch.float64)
    if log_p is not None:  # sequence by sequence, as intermediate results are as large as the log-probabilities
        pairs = zip(*(one.split(lengths.tolist()) for one in (log_p, log_q)), strict=True)
        divergence = torch.stack([apart(p, q).double().sum() for p, q in pairs]).cpu()
    return Compared(
        divergence,
        lengths.double().cpu(),
        _losses(batch, log_q).cpu(),
        are_counted(batch).sum(1).double().cpu(),
    )


def _losses(batch: Tokens, log_q: torch.Tensor) -> torch.Tensor:
    """Return the sum of -log q(next token) of each sequence, over tokens whose next one is unmasked too, float64."""
    device = log_q.device
    mask = batch.mask.to(device)
    rows = mask.flatten().cumsum(0).view(mask.shape)[:, :-1] - 1  # of log q, by place
    counted, goals = are_counted(batch).to(device), batch.input_ids[:, 1:].to(device)
    losses = torch.zeros(counted.shape, dtype=torch.float64, device=device)
    losses[counted] = -log_q[rows[counted], goals[counted]].double()
    return losses.sum(1)


def _joined(parts: Sequence[Compared]) -> Compared:
    """Return the sums of all batches; raises ReplaceMeError where some are not finite."""
    found = Compared(*(torch.cat([getattr(part, name) for part in parts]) for name in Compared.__dataclass_fields__))
    broken = int((~torch.isfinite(found.divergence + found.loss)).sum())
    if broken:
        raise ReplaceMeError(f"divergence: not finite in {broken} sequences; set `dtype: float32`")
    return found
