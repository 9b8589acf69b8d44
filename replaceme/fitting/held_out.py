"""Compare the predictions of a model with those of the same one shortened, on text that no fit has seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme.activations.capture import trimmed
from replaceme.activations.language_loss import are_counted, counted_tokens, loss_batches
from replaceme.calibration.tokens import Tokens
from replaceme.core.cut_record import Span
from replaceme.core.progress import progress
from replaceme.surgery.shortened_model import shortened

if TYPE_CHECKING:
    from torch import nn

    from replaceme.models.family import Family
    from replaceme.transforms.transform import Transform

SEQUENCES = 16
TOKENS = 128  # of each, at most


@dataclass(frozen=True)
class Predictions:
    """Quality of both models' predictions of a text: `perplexity` before and after, and their `kl` in nats per token."""

    sequences: int
    tokens: int
    perplexity: float
    perplexity_after: float
    kl: float


def compare(
    model: "nn.Module",
    family: "Family",
    groups: Sequence[Span],
    transforms: "Sequence[Transform]",
    tokens: Tokens,
) -> Predictions:
    """Return the comparison on the first TOKENS tokens of SEQUENCES sequences; the model must have its head.

    Perplexity is `exp` of the mean loss of tokens that follow another, kl the mean of KL(whole || shortened) over all
    tokens. Raises ReplaceMeError where no token follows another.
    """
    import torch

    from replaceme.activations.divergence import divergences, log_probabilities

    tokens = tokens.first(SEQUENCES)
    tokens = Tokens(tokens.input_ids[:, :TOKENS], tokens.mask[:, :TOKENS])
    losses, kl, counted = [0.0, 0.0], 0.0, counted_tokens(tokens)
    with torch.inference_mode():
        for batch in progress(loss_batches(model, tokens), "held-out text", unit="batch"):
            batch = trimmed(batch)
            whole = log_probabilities(model, batch)
            with shortened(model.base_model, family, groups, transforms):
                short = log_probabilities(model, batch)
            kl += float(divergences(whole, short).double().sum())
            follows = are_counted(batch)
            goals = batch.input_ids[:, 1:][follows].to(whole.device)
            before = torch.nn.functional.pad(follows, (0, 1))[batch.mask].to(whole.device)  # rows with a next token
            for k, found in enumerate((whole, short)):
                losses[k] -= float(found[before].gather(1, goals[:, None]).double().sum())
    perplexities = (math.exp(min(loss / counted, 700.0)) for loss in losses)
    return Predictions(len(tokens), tokens.count, *perplexities, kl / tokens.count)
