"""Placeholder among the fitted maps for a merge of removed blocks (LaCo, see `placements.collapse`)."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from replaceme.activations.statistics import Statistics
from replaceme.core.cut_record import Cut
from replaceme.placements.collapse import Collapse
from replaceme.transforms.transform import Transform


def fit_collapse(
    hidden_size: int, coefficients: Sequence[int] | None = None, statistics: Statistics | None = None
) -> Transform:
    """Return the placeholder of a merge: it has no map of its own (`matrix` is I) and needs no statistics.

    `coefficients` of the carrier and each removed block: by default `(1 - n, 1, ..., 1)` of n removed blocks.
    """
    found = Transform(torch.eye(hidden_size, dtype=torch.float64), {"solver": "collapse"}, Collapse.name)
    return found if coefficients is None else _with(found, coefficients)


def _with(transform: Transform, coefficients: Sequence[int]) -> Transform:
    return replace(transform, report={**transform.report, "coefficients": list(coefficients)})


def as_chosen(cut: Cut, transforms: Sequence[Transform]) -> list[Transform]:
    """Return the transforms of the groups of a cut.json; those that merge do so with the coefficients it was chosen
    with.
    """
    if cut.coefficients is None:
        return list(transforms)
    pairs = zip(transforms, cut.coefficients, strict=True)
    return [_with(one, given) if one.placement == Collapse.name else one for one, given in pairs]
