"""The place of a transform, the weighting of tokens in its fit, and the resulting name of its sums.

Placements: `mlp`, `down_proj`, `block`, `upstream`; `inputs` is no placement, but the rows that the recycled neurons
are chosen from. `activations/targets` defines rows and target of each.
"""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["mlp", "down_proj", "block", "inputs"]
Weighting = Literal["uniform", "inverse_energy"]
UPSTREAM = "upstream"
ON_STREAM = ("block", UPSTREAM)  # placements of maps of the whole residual stream, not of what the MLP adds


@dataclass(frozen=True)
class Regression:
    """A placement, and the weight of tokens: all alike, or 1 / |r|^2 (`inverse_energy`: least squares of r / |r|).

    `recycle`: the share of the carrier's neurons that are recycled (see `recycled_neurons`).
    """

    placement: Placement = "mlp"
    weighting: Weighting = "uniform"
    recycle: float | None = None

    @property
    def kind(self) -> str:
        """Name of its sums as a path component."""
        weighting = "" if self.weighting == "uniform" else f"-{self.weighting}"
        return self.placement + weighting + ("" if self.recycle is None else f"-recycle-{self.recycle}")

    @property
    def before(self) -> "Regression | None":
        """Regression whose sums the recycled neurons are chosen from; None without recycled neurons."""
        return None if self.recycle is None else Regression("inputs", self.weighting)


MLP = Regression()
