"""Measure the distances and gather the evidence of the fit by one forward pass: the first batch predicts the cut.

A cut chosen by distance would take a pass for the distances and, once it is known, another for the fit. But thousands
of tokens mostly name the cut that millions do. So the first batch chooses one, the pass that measures the distances
gathers for that cut on the way, and where all tokens choose another one after all, that gets a pass of its own. The
result has the same bits as that of two passes.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.activations.capture import collect
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.methods import MethodConfig
from replaceme.core.cut_record import Cut
from replaceme.core.places import Span
from replaceme.cuts.distances import means_of, several
from replaceme.cuts.possible import choose_possible
from replaceme.fitting.passes import Evidence, Passes
from replaceme.models.model_record import ModelRecord

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


def can_foresee(cut: CutConfig, fit: MethodConfig, model: "nn.Module") -> bool:
    """Return whether one pass suffices: the cut is chosen by distance, and its T needs one pass over a whole model."""
    if fit.is_other or cut.start is not None or cut.needs_candidates or hasattr(model, "streamed"):
        return False
    return fit.recycle is None and not fit.automatic and not fit.sequential(cut.several)


def choose_and_gather(
    passes: Passes,
    record: ModelRecord,
    cut: CutConfig,
    fit: FitConfig,
    folder: Path,
    foreseen: Callable[[Sequence[Span]], None],
) -> tuple[Cut, list[Evidence] | None]:
    """Return the chosen cut, and the evidence of each of its groups, None if the first batch predicted another cut.

    `foreseen` is called with the groups that are gathered for, before the pass; rows that memory has no room for go to
    a folder.
    """
    blocks = len(passes.family.block_modules(passes.model))
    first, distances = (several(blocks, cut.of_representations, cut.halves) for _ in range(2))
    collect(passes.model, passes.family, passes.tokens.batches(passes.batch_size)[:1], first)
    expected = choose_possible(cut, record, means_of(first), tell=False)
    foreseen(expected.groups)
    evidence = passes.evidence(fit, expected.groups, folder, distances)
    chosen = choose_possible(cut, record, means_of(distances))
    if chosen.groups == expected.groups:
        return chosen, evidence
    log.info("the first batch chose %s, all of them %s: one more pass", expected.span, chosen.span)
    return chosen, None
