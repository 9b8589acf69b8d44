"""The language-model loss: mean over tokens of -log p(token | those before it), in nats."""

from typing import TYPE_CHECKING

from replaceme.capture import model_inputs, trimmed
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError

if TYPE_CHECKING:
    from torch import nn

LOGITS = 2**26  # numbers a forward pass may put out: 256 MB in float32


def mean_loss(model: "nn.Module", tokens: Tokens) -> float:
    """The loss of a model with its head over the unmasked tokens that follow an unmasked one; float32 softmax.

    Raises ReplaceMeError where no token follows another, and for a loss that is not finite.
    """
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in tokens.batches(max(1, LOGITS // (model.config.vocab_size * tokens.input_ids.shape[1]))):
        batch = trimmed(batch)
        with torch.inference_mode():
            logits = model(**model_inputs(batch, device)).logits
        counted = (batch.mask[:, 1:] & batch.mask[:, :-1]).to(device)
        goals = batch.input_ids[:, 1:].to(device)
        total += float(cross_entropy(logits[:, :-1][counted].float(), goals[counted], reduction="sum"))
        count += int(counted.sum())
    if not count:
        raise ReplaceMeError("loss: no sequence of two tokens or more")
    if not total < float("inf"):
        raise ReplaceMeError(f"loss: {total} over {count} tokens; set `dtype: float32`")
    return total / count
