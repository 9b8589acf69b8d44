"""Compare the predictions of a model with those of the same one shortened, on text that no fit has seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme.activations.comparison import compare
from replaceme.calibration.tokens import Tokens
from replaceme.core.places import Span
from replaceme.surgery.shortened_model import predicting

if TYPE_CHECKING:
    from torch import nn

    from replaceme.models.family import Family
    from replaceme.transforms.transform import Transform

SEQUENCES = 16
TOKENS = 128  # of each, at most


@dataclass(frozen=True)
class Quality:
    """Quality of both models' predictions: `perplexity` before and after, and `kl`, in nats per token."""

    sequences: int
    tokens: int
    perplexity: float
    perplexity_after: float
    kl: float


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
    tokens = tokens.first(SEQUENCES)
    tokens = Tokens(tokens.input_ids[:, :TOKENS], tokens.mask[:, :TOKENS])
    whole, short = compare(model, [predicting(model, family, groups, transforms)], tokens, "held-out text")
    perplexities = (math.exp(min(one.mean_loss, 700.0)) for one in (whole, short))
    return Quality(len(tokens), tokens.count, *perplexities, short.mean_divergence)
