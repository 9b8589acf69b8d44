"""A calibration made of others: the first samples of each, in proportion to weights, in an order fixed by a seed."""

import logging
from collections.abc import Sequence

from replaceme.calibration.samples import Samples
from replaceme.config.sources import shares
from replaceme.core.errors import ReplaceMeError

log = logging.getLogger(__name__)


def mix(parts: Sequence[Samples], weights: Sequence[float], samples: int, seed: int) -> tuple[Samples, list[int]]:
    """Draw `samples` samples from all parts, shuffled; return them and the number from each part.

    Raises ReplaceMeError for text with images, and for weights that leave a part without a sample; a part that holds
    fewer than its share gives all it has, with a warning.
    """
    import torch

    if len({type(part) for part in parts}) > 1:
        raise ReplaceMeError("text and images cannot be mixed")
    counts = shares(weights, samples)
    if 0 in counts:
        raise ReplaceMeError(
            f"mix of {samples} samples: nothing of part {counts.index(0) + 1}; raise samples or its weight"
        )
    for k, part in enumerate(parts):
        if len(part) < counts[k]:
            log.warning("part %d of the mix has %d samples, %d asked for", k + 1, len(part), counts[k])
            counts[k] = len(part)
    first, *others = [part.first(count) for part, count in zip(parts, counts, strict=True)]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(seed))
    return first.join(*others)[order], counts
