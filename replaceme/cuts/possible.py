"""Choose the cut of a model with blocks of several kinds among those that leave every kind that its class needs."""

import logging
from typing import TYPE_CHECKING, Any

from replaceme.config.cuts import CutConfig
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span, shown
from replaceme.cuts import choose as choosing
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import family_of
from replaceme.models.model_record import ModelRecord
from replaceme.probing.kinds import fault_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
ONE_BY_ONE = ("merging", "iterative")  # searches whose runs were measured one after another, each without the others


def choose_possible(
    cut: CutConfig,
    record: ModelRecord,
    distances: "dict[str, torch.Tensor] | None" = None,
    candidates: list[dict[str, Any]] | None = None,
    tell: bool = True,
) -> Cut:
    """Return the cut that `choose` takes when runs of blocks that the model cannot do without are no candidates.

    Runs are tried on a small model as they are chosen, the best first; `tell`: log which were passed over. Raises
    ReplaceMeError where no run is left, and where a cut placed by hand, or runs that do alone, cannot go together.
    """
    config = read_config(record.folder)
    family = family_of(config, record.source)

    def fault(groups: list[Span]) -> str | None:
        return fault_of(config, family, groups)

    faults: dict[Span, str] = {}
    while True:
        try:
            chosen = choosing.choose(cut, record, distances, candidates, faults)
        except ReplaceMeError:
            if not faults:
                raise
            raise ReplaceMeError(_none_left(record, faults)) from None
        reason = fault(chosen.groups)
        if reason is None:
            break
        free = cut.start is None and cut.search not in ONE_BY_ONE
        found = {one: why for one in chosen.parts or chosen.groups if (why := fault([one]))} if free else {}
        if not found:
            raise ReplaceMeError(f"{record.source}: {reason}; take another cut")
        faults |= found
    if faults and tell:
        log.info("cut: no candidates are %s: %s", shown(sorted(faults)), next(iter(faults.values())))
    if chosen.budget is not None and tell:
        log.info("cut: %s", _spent(cut, chosen))
    return chosen


def _spent(cut: CutConfig, chosen: Cut) -> str:
    """Return what was to be removed, and what is, in words."""
    asked = f"{cut.blocks} blocks" if cut.ratio is None else f"ratio {cut.ratio}"
    saved = chosen.budget.get("saved")
    said = "" if saved is None else f", which saves {saved:.3f} of the model's"
    gone = chosen.blocks if chosen.pairs_up else chosen.amount
    return f"{asked} of {cut.of}: {gone} of {chosen.num_blocks} blocks, {chosen.span}{said}"


def _none_left(record: ModelRecord, faults: dict[Span, str]) -> str:
    first = next(iter(faults.values()))
    return f"{record.source}: the model cannot do without any run of so many blocks; {first}; remove fewer"
