"""The KL divergence of next-token distributions: how far a model's predictions are from those of another, per token.

KL(p || q) = sum_v p(v) (log p(v) - log q(v)),   p of the one model, q of the other, v over the vocabulary
"""

from typing import TYPE_CHECKING

import torch

from replaceme.activations.capture import model_inputs
from replaceme.calibration.tokens import Tokens

if TYPE_CHECKING:
    from torch import nn

LEAST = -1e4  # log-probability, below which a logit stands for "never"


def logits(model: "nn.Module", batch: Tokens) -> torch.Tensor:
    """Return the logits of the unmasked tokens of a batch, [tokens, vocabulary] float32."""
    found = model(**model_inputs(model, batch)).logits
    return found[batch.mask.to(found.device)].float()


def log_probabilities(model: "nn.Module", batch: Tokens) -> torch.Tensor:
    """Return log-probabilities of what follows each unmasked token, [tokens, vocabulary] float32, at least LEAST."""
    return logits(model, batch).log_softmax(-1).clamp(min=LEAST)


def divergences(whole: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return KL(whole || other) of each token in nats, [tokens], from log-probabilities [tokens, vocabulary]."""
    return (whole.exp() * (whole - other)).sum(-1)
