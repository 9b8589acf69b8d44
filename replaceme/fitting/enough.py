"""Find how much of a calibration text is enough: where twice as much no longer changes what least squares leaves.

The model runs over growing prefixes of the text, 32, 64, 128, ... samples, over each sample once, and the sums are
added up. After each doubling T is fitted for a spread of cuts, so that nothing depends on the cut chosen later, and its
residual on samples held out from the end of the text follows from their sums alone. The text is enough where no cut's
residual changed by `tolerance` of itself or more over the last doubling.

Fewer tokens than the rows of the fit are wide fit perfectly, whatever they say, and are not judged. For rows without
structure the residual is `1 + width / tokens` times its limit, so that a tolerance of 0.01 takes about 100 tokens for
each channel, and ten times the tolerance a tenth of them.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from replaceme.calibration.samples import Samples
from replaceme.config.placement import MLP, Regression
from replaceme.core.places import Span
from replaceme.core.progress import progress
from replaceme.models.family import Family

if TYPE_CHECKING:
    from torch import nn

    from replaceme.activations.statistics import Statistics

log = logging.getLogger(__name__)
FIRST = 32  # samples, doubled from there
HELD_OUT, MOST_HELD_OUT = 16, 128  # one of so many samples is held out, at most so many


@dataclass(frozen=True)
class Criterion:
    """The relative change of the held-out residual below which text is enough, and the regression that leaves it."""

    tolerance: float
    regression: Regression = MLP

    def is_met(self, point: "Point") -> bool:
        """Return whether no cut's residual changed by as much as the tolerance."""
        return point.change is not None and abs(point.change) < self.tolerance


@dataclass(frozen=True)
class Point:
    """The held-out residual of each cut after a fit on the first `samples`, and its relative change since half of them.

    `seconds` since the beginning, the pass over the held-out samples included.
    """

    samples: int
    tokens: int
    residuals: list[float]
    changes: list[float] | None
    seconds: float

    @property
    def change(self) -> float | None:
        """Largest change of a cut's residual, with its sign; None at the first point."""
        return None if self.changes is None else max(self.changes, key=abs)

    def __str__(self) -> str:
        """Return the point as a line for people."""
        residuals = ", ".join(f"{one:.4f}" for one in self.residuals)
        change = "" if self.change is None else f" ({100 * self.change:+.1f}%)"
        return f"{self.samples} samples, {self.tokens} tokens: held-out residual {residuals}{change}"


@dataclass(frozen=True)
class Enough:
    """The number of samples that are enough, or all there are; the reason, and what was measured of which cuts."""

    samples: int
    found: bool
    reason: str
    criterion: Criterion
    cuts: list[Span]
    held_out: Samples
    curve: list[Point]

    def record(self, times: bool = True) -> dict[str, Any]:
        """Return the content of enough.json; without `times` it is the same in every run."""
        curve = [asdict(point) for point in self.curve]
        for point in curve if not times else ():
            del point["seconds"]
        return {
            "samples": self.samples,
            "enough": self.found,
            "reason": self.reason,
            "tolerance": self.criterion.tolerance,
            "placement": self.criterion.regression.placement,
            "cuts": [list(cut) for cut in self.cuts],
            "held_out": {"samples": len(self.held_out), "tokens": self.held_out.count},
            "curve": curve,
        }


def spread_cuts(num_blocks: int) -> list[Span]:
    """Return cuts of a quarter of the blocks whose carriers lie at a quarter, half and three quarters of the depth."""
    blocks = max(1, num_blocks // 4)
    starts = (min(max(1, num_blocks * k // 4), num_blocks - blocks) for k in (1, 2, 3))
    return list(dict.fromkeys((start, start + blocks) for start in starts))


def find_enough(
    model: "nn.Module", family: Family, samples: Samples, batch_size: int, criterion: Criterion
) -> tuple[Samples, Enough]:
    """Return the first of some samples that are enough for a base model, and what was measured.

    Where no prefix is enough they are all of them, with a warning. Raises ReplaceMeError as forward passes and fits do.
    """
    from replaceme.activations.capture import collect, trimmed
    from replaceme.activations.gather import Gathered

    began = time.monotonic()
    cuts = spread_cuts(len(family.block_modules(model)))
    held_out = samples[-min(max(1, len(samples) // HELD_OUT), MOST_HELD_OUT) :]

    def gather(gathered: Gathered, part: Samples, name: str) -> "list[Statistics]":
        collect(model, family, progress(part.batches(batch_size), name, unit="batch"), [gathered])
        return gathered.statistics()

    sizes = _sizes(samples.first(len(samples) - len(held_out)), _width(model, family, criterion.regression, cuts))
    apart = gather(Gathered(cuts, criterion.regression), held_out, "held out") if sizes else []
    growing, done = Gathered(cuts, criterion.regression), 0
    curve: list[Point] = []
    for size in sizes:
        sums = gather(growing, samples[done:size], "enough")
        residuals = _residuals(sums, apart, str(next(model.parameters()).device))
        changes = _changes(curve[-1].residuals, residuals) if curve else None
        curve.append(Point(size, sums[0].tokens, residuals, changes, round(time.monotonic() - began, 3)))
        found = criterion.is_met(curve[-1])
        log.info("%s%s", curve[-1], ": enough" if found else "")
        if found:
            break
        done = size
    result = _judged(samples, criterion, cuts, held_out, curve)
    if not result.found:
        log.warning("%s", result.reason)
    return trimmed(samples.first(result.samples)), result


def _sizes(samples: Samples, width: int) -> list[int]:
    """Return the sizes of the prefixes that are judged, each twice the one before."""
    sizes = (FIRST << k for k in range(len(samples).bit_length()))
    return [size for size in sizes if size <= len(samples) and samples.first(size).count >= width]


def _width(model: "nn.Module", family: Family, regression: Regression, cuts: Sequence[Span]) -> int:
    from replaceme.activations.targets import width_of

    return max(width_of(regression, model, family, start) for start, _ in cuts)


def _residuals(sums: "Sequence[Statistics]", apart: "Sequence[Statistics]", device: str) -> list[float]:
    """Return for each cut the residual on held-out samples of least squares on the others, solved on the device."""
    from replaceme.transforms.closed_form import fit_least_squares
    from replaceme.transforms.transform import residual

    pairs = zip(sums, apart, strict=True)
    return [residual(held_out.to(device), fit_least_squares(one.to(device)).matrix) for one, held_out in pairs]


def _changes(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Return relative changes; none where nothing was left."""
    return [new / old - 1 if old > 0 else 0.0 for old, new in zip(before, after, strict=True)]


def _judged(samples: Samples, criterion: Criterion, cuts: list[Span], held_out: Samples, curve: list[Point]) -> Enough:
    tolerance, last = criterion.tolerance, curve[-1] if curve else None
    found = last is not None and criterion.is_met(last)
    if found:
        reason = f"from {last.samples // 2} to {last.samples} samples the held-out residual of no cut changed by "
        reason += f"{100 * tolerance:g}% or more"
    else:
        reason = f"all {len(samples)} samples are taken: "
        if last is None or last.change is None:
            reason += "they are too few to judge twice as many by half of them; raise `most`, or give their number"
        else:
            reason += f"from {last.samples // 2} to {last.samples} of them a held-out residual still changed by "
            reason += f"{100 * last.change:+.1f}%, more than {100 * tolerance:g}%; raise `most` or `tolerance`"
    return Enough(last.samples if found else len(samples), found, reason, criterion, cuts, held_out, curve)
