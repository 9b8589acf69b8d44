"""The place of a transform, the weighting of tokens in its fit, and the resulting name of its sums."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from replaceme.config.base import Strict
from replaceme.placements.inputs import Inputs
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import Placement
from replaceme.placements.registry import PLACEMENTS, REGRESSED

Weighting = Literal["uniform", "inverse_energy"]
OFFERED = {name: place for name, place in PLACEMENTS.items() if place.description}
# what the sums over the text depend on
REGRESSION = ("placement", "weighting", "recycle")


@dataclass(frozen=True)
class Regression:
    """A placement, and the weight of tokens: all alike, or 1 / |r|^2 (`inverse_energy`: least squares of r / |r|).

    The latter (`inverse_energy`) is least squares of r / |r|. `recycle`: the share of the carrier's neurons that are
    recycled (see `recycled_neurons`).
    """

    placement: str = Mlp.name
    weighting: Weighting = "uniform"
    recycle: float | None = None

    @property
    def place(self) -> Placement:
        """The placement itself."""
        return REGRESSED[self.placement]

    @property
    def kind(self) -> str:
        """Name of its sums as a path component."""
        weighting = "" if self.weighting == "uniform" else f"-{self.weighting}"
        return self.placement + weighting + ("" if self.recycle is None else f"-recycle-{self.recycle}")

    @property
    def before(self) -> "Regression | None":
        """Regression whose sums the recycled neurons are chosen from; None without recycled neurons."""
        return None if self.recycle is None else Regression(Inputs.name, self.weighting)


MLP = Regression()


class PlacementOptions(Strict):
    """Place of T, and options of the regression that fits it."""

    placement: Literal[tuple(OFFERED)] = Field(
        Mlp.name,
        description=f"Place of T: {'; '.join(f'{name}, {place.description}' for name, place in OFFERED.items())}.",
    )
    weighting: Weighting = Field(
        "uniform",
        description="Weight of tokens in the sums: all alike, or by 1 / |r|^2 (least squares of the target's direction "
        "rather than of the target).",
    )
    recycle: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the carrier's MLP neurons, the least used ones, that are set to pass on linear features "
        "of the MLP's input (at most as many as the hidden size; placement down_proj, gated MLPs).",
    )

    @property
    def place(self) -> Placement:
        """The placement itself."""
        return PLACEMENTS[self.placement]

    @property
    def regression(self) -> Regression:
        """Regression that the fit solves."""
        return Regression(self.place.fitted_as, self.weighting, self.recycle)
