"""Standard errors in closed form: of means, of perplexities, and of paired differences between two models.

Items are numbers, or for perplexities log-likelihoods l_i (nats), alone or as pairs [l_i, w_i] with the number of
words or bytes of the item. With n < 2 items a standard error is None.
"""

import math
from collections.abc import Sequence

import numpy as np

Estimate = tuple[float, float | None]


def mean(values: Sequence[float]) -> Estimate:
    """Return (m, s / sqrt(n)) with the sample standard deviation s (n - 1)."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean()), None
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


def rate(items: Sequence) -> Estimate:
    """Return the negative log-likelihood per unit, r = -sum l_i / sum w_i (w_i = 1 where the items have no weight).

    Its standard error is that of a ratio: sqrt(n / (n - 1) sum e_i^2) / sum w_i with e_i = -l_i - r w_i; for equal
    weights this is the one of a mean.
    """
    losses, weights = _columns(items)
    value = losses.sum() / weights.sum()
    n = len(losses)
    if n < 2:
        return float(value), None
    errors = losses - value * weights
    return float(value), float(math.sqrt(n / (n - 1) * np.square(errors).sum()) / weights.sum())


def perplexity(items: Sequence) -> Estimate:
    """Return exp(r) and, by the delta method, exp(r) times the standard error of r (see `rate`)."""
    value, stderr = rate(items)
    power = math.exp(value) if value < 709 else math.inf
    return power, None if stderr is None else power * stderr


def paired_mean(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return the mean over items of (ours - theirs) and the standard error of that mean."""
    return mean(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))


def paired_log_perplexity(ours: Sequence, theirs: Sequence) -> Estimate:
    """Return the log perplexity of ours minus theirs on the same items (same weights), and its standard error."""
    losses, weights = _columns(ours)
    others, _ = _columns(theirs)
    return rate(np.stack([others - losses, weights], axis=1))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Return the unweighted mean of independent estimates; standard error sqrt(sum stderr^2) / k, None if one is
    unknown.
    """
    k = len(estimates)
    value = math.fsum(value for value, _ in estimates) / k
    errors = [stderr for _, stderr in estimates if stderr is not None]
    return value, math.sqrt(math.fsum(error**2 for error in errors)) / k if len(errors) == k else None


def _columns(items: Sequence) -> tuple[np.ndarray, np.ndarray]:
    array = np.asarray(items, dtype=np.float64)
    if array.ndim == 1:
        return -array, np.ones_like(array)
    return -array[:, 0], array[:, 1]
