"""The language-model loss: mean over tokens of -log p(token | those before it), in nats."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from replaceme.activations.capture import model_inputs, trimmed
from replaceme.activations.head import LOGITS
from replaceme.calibration.tokens import Tokens
from replaceme.core.errors import ReplaceMeError
from replaceme.core.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import nn


Context = Callable[[Tokens], AbstractContextManager[None]]


def mean_loss(model: "nn.Module", tokens: Tokens) -> float:
    """Return the loss of a model with its head over all tokens that `sequence_losses` counts; errors as there."""
    sums, counts = sequence_losses(model, tokens)
    return float(sums.sum() / counts.sum())


def sequence_losses(model: "nn.Module", tokens: Tokens) -> "tuple[torch.Tensor, torch.Tensor]":
    """Return (sum of the losses, number of tokens) of each sequence, float64 on the CPU, of a model with its head.

    Raises ReplaceMeError where no token follows another, and for a loss that is not finite.
    """
    return losses_within(model, tokens, [lambda batch: nullcontext()])[0]


def losses_within(
    model: "nn.Module", tokens: Tokens, contexts: Sequence[Context], description: str | None = None
) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """Return what `sequence_losses` does for each of some contexts of a trimmed batch, within which the model runs.

    With a description its progress is shown.
    """
    import torch

    counted_tokens(tokens)
    found: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in contexts]
    batches = loss_batches(model, tokens)
    for batch in map(trimmed, batches if description is None else progress(batches, description, unit="batch")):
        for parts, context in zip(found, contexts, strict=True):
            with torch.inference_mode(), context(batch):
                losses, counted = token_losses(model, batch)
            parts.append((losses.sum(1).cpu(), counted.sum(1).double().cpu()))
    joined = [tuple(map(torch.cat, zip(*parts, strict=True))) for parts in found]
    for total, _ in joined:
        if not torch.isfinite(total).all():
            raise ReplaceMeError(
                f"loss: not finite in {int((~torch.isfinite(total)).sum())} sequences; set `dtype: float32`"
            )
    return joined


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
