"""Choose neurons of removed blocks that a carrier's MLP computes in place of some of its own, before the fit of its
down projection.

This takes two passes over the text after that of the sums over the carrier's own neurons: one scores all neurons of the
removed blocks against what a fit of the own ones misses (`removed_neurons`), one adds up the Gram over the own and a
shortlist, from which as many are taken out as the shortlist has (`neuron_choice`). So at most `recycle` of the neurons
are exchanged, and fewer where the own ones say more.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from replaceme.activations.gather import Gathered
from replaceme.activations.recycled_neurons import Recycled
from replaceme.activations.removed_neurons import Screen, neurons_of
from replaceme.activations.statistics import Statistics
from replaceme.config.placement import Regression
from replaceme.core.cut_record import Span
from replaceme.models.checkpoints import Checkpoint, open_checkpoint
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.given_rows import scaled
from replaceme.transforms.neuron_choice import keep_best

if TYPE_CHECKING:
    from replaceme.fitting.passes import Passes

RIDGE = 0.01  # of the fits by which is chosen, in units of the mean diagonal, towards the old weights


def choose_removed(
    regression: Regression, groups: Sequence[Span], statistics: Sequence[Statistics], passes: "Passes"
) -> list[Recycled]:
    """Return the recycled neurons of each group of a cut, from the sums of `regression.before`."""
    checkpoint = open_checkpoint(passes.folder)
    screens = [
        _screen(regression, group, one.to(passes.device), checkpoint)
        for group, one in zip(groups, statistics, strict=True)
    ]
    passes.collect("neurons of removed blocks", screens)
    shortlists = [one.shortlist(max(1, round(regression.recycle * len(one.fitted)))) for one in screens]
    gathered = Gathered(groups, regression.beside, shortlists)
    passes.collect("neurons of a shortlist", [gathered])
    sums = (one.to(passes.device) for one in gathered.statistics())
    found = zip(groups, sums, shortlists, strict=True)
    return [_exchanged(_old_weight(regression, checkpoint, group, one), one, short) for group, one, short in found]


def _screen(regression: Regression, group: Span, statistics: Statistics, checkpoint: Checkpoint) -> Screen:
    start, end = group
    pool = [neurons_of(checkpoint, block, start - 1) for block in range(start, end)]
    towards = _old_weight(regression, checkpoint, group, statistics)
    fitted = fit_least_squares(statistics, ridge_relative=RIDGE, towards=towards).matrix
    return Screen(group, regression, pool, neurons_of(checkpoint, start - 1, start - 1), fitted)


def _old_weight(regression: Regression, checkpoint: Checkpoint, group: Span, statistics: Statistics) -> torch.Tensor:
    """Return the carrier's old weight, with rows of zeros for what is beside its neurons in the sums."""
    found = regression.place.old_weight(checkpoint, group).to(statistics.gram)
    origin = torch.zeros_like(statistics.cross)
    origin[: len(found)] = found
    return origin if checkpoint.family.post_norm is None else scaled(statistics, origin)


def _exchanged(origin: torch.Tensor, statistics: Statistics, shortlist: Recycled) -> Recycled:
    """Return the neurons of a shortlist that stay, in the places of the carrier's that go."""
    own = statistics.width - len(shortlist.up)
    kept = keep_best(statistics, origin, RIDGE, own)
    gone = torch.ones(own, dtype=torch.bool)
    gone[kept[kept < own]] = False
    return shortlist.at(gone.nonzero()[:, 0], kept[kept >= own] - own)
