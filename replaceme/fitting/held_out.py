"""Compare the predictions of a model, or the states of an encoder, with those of the same one shortened, on text that
no fit has seen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme.activations.capture import put_out, trimmed
from replaceme.activations.comparison import compare
from replaceme.calibration.tokens import Tokens
from replaceme.core.places import Span
from replaceme.surgery.shortened_model import predicting, shortened

if TYPE_CHECKING:
    from torch import nn

    from replaceme.models.family import Family
    from replaceme.transforms.transform import Transform

SEQUENCES = 16
TOKENS = 128  # of each, at most


@dataclass(frozen=True)
class Quality:
    """Quality of both models' predictions: `perplexity` before and after, over `tokens`, and `kl`, in nats per token.

    `tokens` are those that follow another and that a model predicts; `kl` is over all, those of pictures too.
    """

    sequences: int
    tokens: int
    perplexity: float
    perplexity_after: float
    kl: float


@dataclass(frozen=True)
class Likeness:
    """Likeness of an encoder's last states before and after: the mean `cosine` over tokens."""

    sequences: int
    tokens: int
    cosine: float


def _few(tokens: Tokens) -> Tokens:
    """Return the first TOKENS tokens of SEQUENCES sequences, whole ones where they have pictures."""
    return tokens.first(SEQUENCES).begun(TOKENS)


def compare_states(
    model: "nn.Module",
    family: "Family",
    groups: Sequence[Span],
    transforms: "Sequence[Transform]",
    tokens: Tokens,
) -> Likeness:
    """Return the comparison of a base model's last states on the same few tokens as in `compare_predictions`."""
    import torch
    from torch.nn.functional import cosine_similarity

    tokens, total = _few(tokens), 0.0
    for batch in map(trimmed, tokens.batches(1)):
        with torch.inference_mode():
            whole = put_out(model, batch).double()
            with shortened(model, family, groups, transforms):
                short = put_out(model, batch).double()
        total += float(cosine_similarity(whole, short, dim=-1).sum())
    return Likeness(len(tokens), tokens.count, total / tokens.count)


def compare_predictions(
    model: "nn.Module",
    family: "Family",
    groups: Sequence[Span],
    transforms: "Sequence[Transform]",
    tokens: Tokens,
) -> Quality:
    """Return the comparison on the first TOKENS tokens of SEQUENCES sequences; the model must have its head.

    Perplexity is `exp` of the mean loss of tokens that follow another, kl the mean of KL(whole || shortened) over all
    tokens. Raises ReplaceMeError where no token follows another.
    """
    tokens = _few(tokens)
    whole, short = compare(model, [predicting(model, family, groups, transforms)], tokens, "held-out text")
    perplexities = (math.exp(min(one.mean_loss, 700.0)) for one in (whole, short))
    return Quality(len(tokens), int(whole.counted.sum()), *perplexities, short.mean_divergence)
