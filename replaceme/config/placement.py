"""The place of a transform, the weighting of tokens in its fit, and the resulting name of its sums."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from replaceme.config.base import Strict
from replaceme.placements.inputs import Inputs
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import INPUT, REMOVED, Placement
from replaceme.placements.registry import PLACEMENTS, REGRESSED

Weighting = Literal["uniform", "inverse_energy"]
RecycleFrom = Literal[INPUT, REMOVED]
OFFERED = {name: place for name, place in PLACEMENTS.items() if place.description}
# what the sums over the text depend on
REGRESSION = ("placement", "weighting", "recycle", "recycle_from")


@dataclass(frozen=True)
class Regression:
    """A placement, and the weight of tokens: all alike, or 1 / |r|^2 (`inverse_energy`: least squares of r / |r|).

    The latter (`inverse_energy`) is least squares of r / |r|. `recycle`: the share of the carrier's neurons that are
    recycled; `recycle_from`: into what (see `recycled_neurons` and `removed_neurons`).
    """

    placement: str = Mlp.name
    weighting: Weighting = "uniform"
    recycle: float | None = None
    recycle_from: RecycleFrom = INPUT

    @property
    def place(self) -> Placement:
        """The placement itself."""
        return REGRESSED[self.placement]

    @property
    def kind(self) -> str:
        """Name of its sums as a path component."""
        weighting = "" if self.weighting == "uniform" else f"-{self.weighting}"
        recycled = "" if self.recycle is None else f"-recycle-{self.recycle}"
        return self.placement + weighting + recycled + ("" if self.recycle_from == INPUT else f"-{self.recycle_from}")

    @property
    def before(self) -> "Regression | None":
        """Regression whose sums the recycled neurons are chosen from; None without recycled neurons.

        Those of removed blocks are chosen by what a fit of the carrier's own misses, and then from sums over both.
        """
        if self.recycle is None:
            return None
        return Regression(Inputs.name if self.recycle_from == INPUT else self.placement, self.weighting)

    @property
    def beside(self) -> "Regression":
        """Regression on the carrier's neurons and what is beside them: candidates for neurons, or the MLP's input."""
        return Regression(Inputs.name, self.weighting)


MLP = Regression()


class WeightingOptions(Strict):
    """The weight of tokens in least squares."""

    weighting: Weighting = Field(
        "uniform",
        description="Weight of tokens in the sums: all alike, or by 1 / |r|^2 (least squares of the target's direction "
        "rather than of the target).",
    )


class PlacementOptions(WeightingOptions):
    """Place of T, and options of the regression that fits it."""

    placement: Literal[tuple(OFFERED)] = Field(
        Mlp.name,
        description=f"Place of T: {'; '.join(f'{name}, {place.description}' for name, place in OFFERED.items())}.",
    )
    recycle: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the carrier's MLP neurons, the least used ones, that get other work (placement "
        "down_proj): what `recycle_from` says.",
    )
    recycle_from: RecycleFrom = Field(
        INPUT,
        description="What recycled neurons do: input, pass on linear features of the MLP's input (at most as many as "
        "the hidden size; gated MLPs); removed, what neurons of the removed blocks did, those that explain most beside "
        "the carrier's own (at most `recycle` of them; two more passes over the text).",
    )

    @property
    def place(self) -> Placement:
        """The placement itself."""
        return PLACEMENTS[self.placement]

    @property
    def regression(self) -> Regression:
        """Regression that the fit solves."""
        return Regression(self.place.fitted_as, self.weighting, self.recycle, self.recycle_from)
