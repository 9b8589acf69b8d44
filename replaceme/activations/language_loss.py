"""The language-model loss: mean over tokens of -log p(token | those before it), in nats."""

from typing import TYPE_CHECKING

from replaceme.activations.capture import model_inputs, trimmed
from replaceme.activations.head import LOGITS
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn


def mean_loss(model: "nn.Module", tokens: Tokens) -> float:
    """Return the loss of a model with its head over all tokens that `sequence_losses` counts; errors as there."""
    sums, counts = sequence_losses(model, tokens)
    return float(sums.sum() / counts.sum())


def sequence_losses(model: "nn.Module", tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return (sum of the losses, number of tokens) of each sequence, float64 on the CPU, of a model with its head.

    Raises ReplaceMeError where no token follows another, and for a loss that is not finite.
    """
    import torch

    counted_tokens(tokens)
    sums, counts = [], []
    for batch in loss_batches(model, tokens):
        with torch.inference_mode():
            losses, counted = token_losses(model, batch)
        sums.append(losses.sum(1).cpu())
        counts.append(counted.sum(1).double().cpu())
    total, number = torch.cat(sums), torch.cat(counts)
    if not torch.isfinite(total).all():
        raise ReplaceMeError(
            f"loss: not finite in {int((~torch.isfinite(total)).sum())} sequences; set `dtype: float32`"
        )
    return total, number


def token_losses(model: "nn.Module", batch: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return (loss of each token but the first, whether it counts), [samples, tokens - 1] of the trimmed batch.

    Counted are the unmasked tokens that follow an unmasked one, the loss of others is zero; float64, the softmax in
    float32. Gradients flow unless the caller stops them.
    """
    import torch
    from torch.nn.functional import cross_entropy

    batch = trimmed(batch)
    logits = model(**model_inputs(model, batch)).logits[:, :-1]
    counted = are_counted(batch).to(logits.device)
    goals = batch.input_ids[:, 1:].to(logits.device)
    losses = torch.zeros(counted.shape, dtype=torch.float64, device=logits.device)
    losses[counted] = cross_entropy(logits[counted].float(), goals[counted], reduction="none").double()
    return losses, counted


def counted_tokens(tokens: Tokens) -> int:
    """Return how many tokens a loss counts; raises ReplaceMeError where no token follows another."""
    number = int(are_counted(tokens).sum())
    if not number:
        raise ReplaceMeError("loss: no sequence of two tokens or more")
    return number


def loss_batches(model: "nn.Module", tokens: Tokens, most: int | None = None) -> list[Tokens]:
    """Return batches whose logits are LOGITS numbers at most (or one sequence), of at most `most` sequences."""
    room = max(1, LOGITS // (model.config.get_text_config().vocab_size * tokens.input_ids.shape[1]))
    return tokens.batches(min(room, most or room))


def are_counted(tokens: Tokens) -> "torch.Tensor":
    """Return which tokens but the first of each sequence are unmasked text and follow an unmasked one, bool."""
    return tokens.predicted[:, 1:] & tokens.mask[:, :-1]
