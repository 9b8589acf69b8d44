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


def sequence_losses(model: "nn.Module", tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """(sum of the losses, number of tokens) of each sequence, float64 on the CPU, of a model with its head.

    Counted are the unmasked tokens that follow an unmasked one; the softmax is in float32. Raises ReplaceMeError where
    no token follows another, and for a loss that is not finite.
    """
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    sums, counts = [], []
    for batch in tokens.batches(max(1, LOGITS // (model.config.vocab_size * tokens.input_ids.shape[1]))):
        batch = trimmed(batch)
        with torch.inference_mode():
            logits = model(**model_inputs(model, batch)).logits[:, :-1]
        counted = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(device)
        goals = batch.input_ids[:, 1:].to(device)
        losses = torch.zeros(counted.shape, dtype=torch.float64, device=device)
        losses[counted] = cross_entropy(logits[counted].float(), goals[counted], reduction="none").double()
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
