"""Compare models with a whole one on text: how far their predictions are from its, and what each loses on the text.

Divergence and loss of a model come from the same forward pass, and the whole model runs once a batch, however many
models it is compared with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import trimmed
from replaceme.activations.divergence import apart, log_probabilities
from replaceme.activations.language_loss import are_counted, counted_tokens, loss_batches
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress

if TYPE_CHECKING:
    from torch import nn

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


def compare(whole: "nn.Module", others: Sequence[Predict], tokens: Tokens, description: str) -> list[Compared]:
    """Return the sums of a model with its head, whose divergence from itself is zero, and then of each other one.

    At most two models' log-probabilities of one batch of `loss_batches` are held at a time. Raises ReplaceMeError where
    no token follows another, for models of another vocabulary, and for sums that are not finite.
    """
    counted_tokens(tokens)
    parts: list[list[Compared]] = [[] for _ in range(len(others) + 1)]
    for batch in map(trimmed, progress(loss_batches(whole, tokens), description, unit="batch")):
        with torch.inference_mode():
            log_p = log_probabilities(whole, batch)
            parts[0].append(_sums(batch, log_p, None))
            for part, predict in zip(parts[1:], others, strict=True):
                part.append(_sums(batch, _alike(predict(batch).to(log_p.device), log_p), log_p))
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
