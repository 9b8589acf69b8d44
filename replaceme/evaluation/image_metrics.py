"""Metrics of labelled images as numbers, one for each item, whose mean is the metric.

For accuracies and recalls they are 0 or 1. A mean over classes, of recalls or of average precisions, is no mean over
images; there image i gets the jackknife's pseudo-value, moved so that their mean is the metric,

    item_i = metric + (n - 1) (mean_j metric_j - metric_i)

with metric_i the metric without image i of n. The standard error of their mean is then the jackknife's, and that of the
mean of differences between two models is paired over images.
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def hits(scores: "torch.Tensor", classes: "torch.Tensor", k: int) -> list[float]:
    """Return for each image whether its class is among the k of highest score; scores [images, classes]."""
    found = scores.topk(k, dim=1).indices == classes[:, None]
    return found.any(dim=1).double().tolist()


def recall_by_class(right: list[float], classes: "torch.Tensor") -> list[float]:
    """Return items of the mean over classes of the share of images that are `right`; classes without images do not
    count.

    Without image i of class c, of which n_c images are right with share p_c, the mean changes by
    (p_c - right_i) / (n_c - 1) / (number of classes). A class of one image leaves no share, and adds no spread.
    """
    values, numbers = np.asarray(right), np.asarray(classes)
    _, numbers, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    shares = np.bincount(numbers, values) / counts
    change = (shares[numbers] - values) / np.maximum(counts - 1, 1)[numbers] / len(counts)
    return _moved(float(shares.mean()), change)


def average_precision(scores: "torch.Tensor", labels: "torch.Tensor") -> list[float]:
    """Return items of the mean over classes of the average precision; scores and labels (0 or 1) [images, classes].

    With images in the order of falling scores, AP is the mean over those of the class of the share of the class among
    the images up to and with them; 0 for a class without images.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    total, change = 0.0, np.zeros(len(scores))
    for column, truth in zip(scores.T, labels.T, strict=True):
        order = np.argsort(-column, kind="stable")
        value, without = _average_precision(truth[order].astype(np.float64))
        total += value
        change[order] += without - value
    return _moved(total / labels.shape[1], change / labels.shape[1])


def _average_precision(truth: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the average precision of a ranked list, and that without each of its places, [images]."""
    rank, true = np.arange(1, len(truth) + 1), truth.cumsum()
    count = true[-1]
    precisions = truth * true / rank
    before = precisions.cumsum() - precisions
    # behind a place that is gone, every rank is one less, and so is the number of true ones where that one was
    shorter = np.maximum(rank - 1, 1)
    behind = _after(truth * true / shorter)
    behind_true = _after(truth * (true - 1) / shorter)
    left = np.maximum(count - truth, 1)
    return precisions.sum() / max(count, 1), (before + np.where(truth > 0, behind_true, behind)) / left


def _after(values: np.ndarray) -> np.ndarray:
    """Return the sum of all values after each place."""
    return values[::-1].cumsum()[::-1] - values


def _moved(metric: float, change: np.ndarray) -> list[float]:
    """Return items from the metric and its changes without each image."""
    return (metric + (len(change) - 1) * (change.mean() - change)).tolist()
