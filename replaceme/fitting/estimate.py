"""Estimate how long a shortening takes, from the speed of its first batch: before the passes over the text start.

A forward pass over one batch, the sums of its rows and a small fit are timed; how many of each there will be follows
from the text, the cut and the fit. What depends on the data (steps of a search, iterations) counts as usual, so the
estimate is rough: half of it or twice as much is no surprise.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaceme.config.cuts import OWN_METRIC, CutConfig
from replaceme.config.fits import FitConfig
from replaceme.config.methods import MethodConfig
from replaceme.fitting.one_pass import can_foresee
from replaceme.fitting.passes import FOLDS
from replaceme.models.model_record import ModelRecord
from replaceme.placements.placement import REMOVED

if TYPE_CHECKING:
    from replaceme.fitting.passes import Passes

ROWS, WIDTH = 2048, 256  # of the fit that is timed
ON_GPU = 2048  # its width there, where one of WIDTH takes no less time
PRODUCTS = 2**31  # rows times squares of the width, of the sums that are timed
WORTH_IT = 2e10  # operations of a pass over the text, about a second: what takes less is not estimated
BACKWARD = 4.0  # forward passes that a step of a training is worth: of two models, and back through one
FOLD = 5.0  # fits that the eigendecomposition of one left-out part is worth, with its products
ITERATIONS = 12.0  # passes over stored rows, as they usually are


@dataclass(frozen=True)
class Pace:
    """Measured seconds: `forward` and `sums` of one position (sums of the hidden size), `solve` of a fit of WIDTH."""

    forward: float
    sums: float
    solve: float


def estimated(passes: "Passes", record: ModelRecord, cut: CutConfig, fit: MethodConfig) -> float | None:
    """Return the seconds that the choice of the cut and the fit take, about.

    None for what is soon done, for other methods, and for a streamed model, whose pace the disk sets.
    """
    small = 2 * record.parameters * passes.tokens.mask.numel() < WORTH_IT
    if small or fit.is_other or hasattr(passes.model, "streamed"):
        return None
    return seconds(measured(passes, record.hidden_size), passes, record.hidden_size, cut, fit)


def measured(passes: "Passes", hidden: int) -> Pace:
    """Time a forward pass over the first batch, sums of rows, and a small fit, each after a first try."""
    import torch

    from replaceme.activations.capture import model_inputs
    from replaceme.activations.statistics import Statistics
    from replaceme.transforms.closed_form import fit_least_squares

    batch, model = passes.tokens[: passes.batch_size], passes.model
    weight = next(model.parameters())
    count = max(1, min(ROWS, PRODUCTS // hidden**2))

    def sums(rows: int, width: int) -> "Statistics":
        given = torch.linspace(-1, 1, rows * width, device=weight.device).sin().reshape(rows, width).to(weight.dtype)
        found = Statistics.zeros(width, weight.device)
        found.add_batch(given, given)
        return found

    narrow = sums(ROWS, min(ON_GPU if weight.is_cuda else WIDTH, hidden))
    with torch.inference_mode():
        forward = _seconds(lambda: model(**model_inputs(model, batch)))
    solve = _seconds(lambda: fit_least_squares(narrow, ridge_relative=1e-3))
    scale = (WIDTH / narrow.hidden_size) ** 3
    return Pace(forward / batch.mask.numel(), _seconds(lambda: sums(count, hidden)) / count, solve * scale)


def _seconds(call: Callable[[], object]) -> float:
    """Return the seconds of a second call."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    call()
    wait()
    began = time.monotonic()
    call()
    wait()
    return time.monotonic() - began


def seconds(pace: Pace, passes: "Passes", hidden: int, cut: CutConfig, fit: FitConfig) -> float:
    """Return the estimate for the choice of the cut and the fit, at some pace."""
    blocks = passes.family.block_modules(passes.model)
    positions = passes.tokens.mask.numel()

    def solve(width: int) -> float:
        return pace.solve * (width / WIDTH) ** 3

    total = _of_choice(pace, positions, len(passes.tokens), len(blocks), cut) if cut.start is None else 0.0
    if cut.fits_candidates:
        total += len(blocks) * solve(hidden)
    if fit.unfitted:
        return total
    width = fit.place.width(hidden, hidden if fit.place.square else passes.family.intermediate_size(blocks[0]))
    groups = cut.groups if cut.several else 1
    sums = groups * pace.sums * (width**2 + width * hidden) / (2 * hidden**2)
    shared = can_foresee(cut, fit, passes.model)  # the pass of the distances gathers too
    total += positions * (sums + pace.forward * (0 if shared else groups if fit.sequential(cut.several) else 1))
    total += groups * solve(width) * (1 + FOLDS * FOLD * fit.automatic + ITERATIONS * fit.needs_rows)
    if fit.recycle is not None:
        of_removed = fit.recycle_from == REMOVED
        wide = width * (1 + fit.recycle) if of_removed else width + hidden
        total += positions * (pace.forward + pace.sums * (wide / hidden) ** 2) + 2 * groups * solve(wide)
        if of_removed:  # scored before that: each by two products for what it computes, and one with the target
            scores = 1.5 * _removed(cut, len(blocks)) * width / hidden
            total += positions * (2 * pace.forward + pace.sums * ((width / hidden) ** 2 + scores))
    if passes.family.post_norm is not None and fit.place.of_mlp:
        total += positions * pace.forward
    if fit.needs_rows:
        total += ITERATIONS * positions * sums
    if fit.end_to_end:
        total += BACKWARD * fit.kl_steps * fit.kl_sequences * passes.tokens.mask.shape[1] * pace.forward
    return total


def _of_choice(pace: Pace, positions: int, samples: int, blocks: int, cut: CutConfig) -> float:
    """Return the estimate for the choice of the cut, without solves."""
    if not cut.needs_candidates:
        return positions * pace.forward
    parts = 1 + (cut.halves or cut.own_code)  # of a block, each of which may begin a candidate
    positions *= min(1.0, (cut.samples or samples) / samples)
    found = 2 * positions * (pace.forward + 1.5 * parts * blocks * pace.sums)
    if cut.needs_loss or cut.search in ("iterative", *OWN_METRIC):
        rounds = parts * _removed(cut, blocks) if cut.search in ("iterative", *OWN_METRIC) else 0.25
        found += positions * pace.forward * parts * blocks * rounds
    return found


def _removed(cut: CutConfig, blocks: int) -> int:
    """Return the number of blocks that a cut takes out of so many."""
    return cut.blocks or max(1, round((cut.ratio or 0) * blocks))
