"""Where a transform is put, how tokens count in its fit, and so what its sums are called.

Placements: `mlp`, `down_proj`, `block`, `upstream`; `inputs` is none, but what the neurons to recycle are chosen from.
`activations/targets` says what is fitted on what for each.
"""

from dataclasses import dataclass
from typing import Literal

Placement = Literal["mlp", "down_proj", "block", "inputs"]
Weighting = Literal["uniform", "inverse_energy"]
UPSTREAM = "upstream"
ON_STREAM = ("block", UPSTREAM)  # placements of maps of the whole residual stream, not of what the MLP adds


@dataclass(frozen=True)
class Regression:
    """A placement, and how tokens count: all alike, or by 1 / |r|^2 (`inverse_energy`: least squares of r / |r|).

    `recycle`: the share of the carrier's neurons that are recycled (see `recycled_neurons`).
    """

    placement: Placement = "mlp"
    weighting: Weighting = "uniform"
    recycle: float | None = None

    @property
    def kind(self) -> str:
        """The name of its sums as a path component."""
        weighting = "" if self.weighting == "uniform" else f"-{self.weighting}"
        return self.placement + weighting + ("" if self.recycle is None else f"-recycle-{self.recycle}")

    @property
    def before(self) -> "Regression | None":
        """Of a regression with recycled neurons: the one whose sums these are chosen from."""
        return None if self.recycle is None else Regression("inputs", self.weighting)


MLP = Regression()
