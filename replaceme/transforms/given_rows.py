"""Input of every solver over rows, and what they share: the length of T, its loss over all rows."""

from dataclasses import dataclass, field

import torch

from replaceme.activations.rows import Rows
from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.closed_form import fit_least_squares
from replaceme.transforms.objectives import Objective
from replaceme.transforms.resume import State
from replaceme.transforms.solve import reported
from replaceme.transforms.streams import Blocks, row_blocks
from replaceme.transforms.transform import Transform

BLOCK_ROWS = 8192  # their float64 copies and derivatives are held at once


@dataclass(frozen=True)
class GivenRows:
    """Stored rows, the sums over the same text, the device to compute on, and the state of an unfinished fit.

    Raises ReplaceMeError where rows and sums are not of the same channels.
    """

    statistics: Statistics
    rows: Rows
    device: str | torch.device = "cpu"
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        if self.rows.columns != tuple(self.statistics.cross.shape):
            widths = " and ".join(map(str, dict.fromkeys(self.rows.columns)))
            raise ReplaceMeError(
                f"{self.rows.folder}: rows of {widths} channels, statistics of {self.statistics.width}"
            )

    def blocks(self, objective: Objective) -> Blocks:
        """Return the rows in blocks small enough for derivatives."""
        return row_blocks(self.rows, self.device, objective.state, BLOCK_ROWS)

    def finished(
        self, objective: Objective, matrix: torch.Tensor, solver: str, history: list[float], blocks: Blocks
    ) -> Transform:
        """Return the transform of a matrix that a gradient solver found.

        The report, beside that of least squares for T: solver, history, and the objective over all rows, without
        penalties, of T and of least squares (cosine_distance, or mean_squared_error over tokens and channels).
        """
        name = "mean_squared_error" if objective.name == "l2" else "cosine_distance"
        start = fit_least_squares(self.statistics).matrix
        losses = {
            name: objective.mean(blocks, matrix.to(self.device)),
            f"{name}_least_squares": objective.mean(blocks, start.to(self.device)),
        }
        return reported(self.statistics, matrix, {"solver": solver, "history": history, **losses})


def scaled(statistics: Statistics, matrix: torch.Tensor) -> torch.Tensor:
    """Return T times the factor that least squares gives it, `tr(T^T C) / tr(T^T G T)`."""
    fitted = float((matrix * (statistics.gram @ matrix)).sum())
    return matrix * (float((matrix * statistics.cross).sum()) / fitted) if fitted > 0 else matrix
