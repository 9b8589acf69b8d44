"""The language-model loss: mean over tokens of -log p(token | those before it), in nats."""

from typing import TYPE_CHECKING

from replaceme.capture import model_inputs, trimmed
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError

if TYPE_CHECKING:
    import torch
    from torch import nn

LOGITS = 2**26  # numbers a forward pass may put out: 256 MB in float32


def mean_loss(model: "nn.Module", tokens: Tokens) -> float:
    """The loss of a model with its head over all tokens that `sequence_losses` counts; errors as there."""
    sums, counts = sequence_losses(model, tokens)
    return float(sums.sum() / counts.sum())


def token_losses(model: "nn.Module", batch: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """(losses [counted tokens], which tokens are counted [sequences, tokens - 1]) of one batch, float32 and bool.

    Counted are the unmasked tokens that follow an unmasked one; the softmax is in float32. Gradients flow where they
    are enabled.
    """
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    logits = model(**model_inputs(model, batch)).logits[:, :-1]
    counted = followers(batch).to(device)
    goals = batch.input_ids[:, 1:].to(device)
    return cross_entropy(logits[counted].float(), goals[counted], reduction="none"), counted


def followers(batch: Tokens) -> "torch.Tensor":
    """Which tokens but the first of each sequence are unmasked and follow an unmasked one, bool."""
    return batch.mask[:, 1:] & batch.mask[:, :-1]


def sequence_losses(model: "nn.Module", tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """(sum of the losses, number of tokens) of each sequence, float64 on the CPU, of a model with its head.

    Counted is what `token_losses` counts. Raises ReplaceMeError where no token follows another, and for a loss that is
    not finite.
    """
    import torch

    sums, counts = [], []
    for batch in tokens.batches(max(1, LOGITS // (model.config.vocab_size * tokens.input_ids.shape[1]))):
        with torch.inference_mode():
            found, counted = token_losses(model, trimmed(batch))
        losses = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
        losses[counted] = found.double()
        sums.append(losses.sum(1).cpu())
        counts.append(counted.sum(1).double().cpu())
    total, number = torch.cat(sums), torch.cat(counts)
    if not number.sum():
        raise ReplaceMeError("loss: no sequence of two tokens or more")
    if not torch.isfinite(total).all():
        raise ReplaceMeError(
            f"loss: not finite in {int((~torch.isfinite(total)).sum())} sequences; set `dtype: float32`"
        )
    return total, number
