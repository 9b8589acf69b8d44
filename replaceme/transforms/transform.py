"""A fitted linear map and how well it fits, both computed from statistics alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from replaceme.activations.recycled_neurons import Recycled
from replaceme.activations.statistics import Statistics
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_metadata, load_tensors, save_groups
from replaceme.placements.mlp import Mlp
from replaceme.placements.placement import Placement
from replaceme.placements.registry import PLACEMENTS

LEAST_SQUARE = 1e-37  # of a row, as good as zero: its root has a gradient


@dataclass(frozen=True)
class Transform:
    """A map `matrix` float64 [width, hidden] in the row-vector convention, `m @ matrix ~ r`, and the fit's report.

    With a `gain` only the direction of its output p counts, which becomes `gain * p / rms(p)`: for blocks with a norm
    after the MLP. `placement` is a name in PLACEMENTS; `recycled`: the neurons that were changed before the fit. The
    report holds plain numbers and strings only (JSON without NaN).
    """

    matrix: torch.Tensor
    report: dict[str, Any] = field(default_factory=dict)
    placement: str = Mlp.name
    gain: float | None = None
    recycled: Recycled | None = None

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `m T + b`, and the effect of a norm after it: rows m [..., width] to [..., hidden], in the type of the
        rows.
        """
        found = rows @ self.matrix.to(rows.device, rows.dtype)
        if self.gain is not None:
            found = self.gain * found / found.square().mean(-1, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
        return found

    def to(self, device: torch.device | str) -> "Transform":
        """Return the same map on another device."""
        return replace(self, matrix=self.matrix.to(device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that `save` writes."""
        return {"transform": self.matrix} | ({} if self.recycled is None else self.recycled.tensors())

    @property
    def is_identity(self) -> bool:
        """True if the blocks are dropped and no weight changes."""
        return self.report["solver"] == "identity"

    @property
    def place(self) -> Placement:
        """Placement of the map."""
        return PLACEMENTS[self.placement]

    def save(self, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Write a safetensors file atomically, with the report and JSON-able metadata."""
        self.save_all(path, [self], metadata)

    @staticmethod
    def save_all(path: str | Path, groups: Sequence["Transform"], metadata: dict[str, Any] | None = None) -> None:
        """Write the transforms of every group of a cut into one file, as `save` does."""
        stamps = [
            {name: getattr(one, name) for name in STAMPED} | {"activation": one.recycled and one.recycled.activation}
            for one in groups
        ]
        stamp = {"groups": stamps, "metadata": metadata or {}}
        save_groups(path, [one.tensors() for one in groups], stamp)

    @staticmethod
    def load(path: str | Path) -> tuple["Transform", dict[str, Any]]:
        """Read a file of `save` as (transform, metadata); raises ReplaceMeError on a wrong content."""
        groups, metadata = Transform.load_all(path)
        if len(groups) != 1:
            raise ReplaceMeError(f"{path}: holds transforms of {len(groups)} groups, not of one")
        return groups[0], metadata

    @staticmethod
    def load_all(path: str | Path) -> tuple[list["Transform"], dict[str, Any]]:
        """Read a file of `save_all` as (transform of each group, metadata); errors as in `load`."""
        stamp = load_metadata(path)
        if set(stamp) != {"groups", "metadata"}:
            raise ReplaceMeError(f"{path}: holds no transforms; delete it and run again")
        found = [_of_tensors(load_tensors(path, k)[0], given, path) for k, given in enumerate(stamp["groups"])]
        return found, stamp["metadata"]


STAMPED = ("report", "placement", "gain")


def _of_tensors(tensors: dict[str, torch.Tensor], given: dict[str, Any], path: str | Path) -> Transform:
    recycles = given["activation"] is not None
    of_neurons = {name: one for name, one in tensors.items() if name != "transform"}
    if "transform" not in tensors or bool(of_neurons) != recycles:
        raise ReplaceMeError(f"{path}: holds {sorted(tensors)}, not a transform; delete it and run again")
    if given["placement"] not in PLACEMENTS:
        known = ", ".join(PLACEMENTS)
        raise ReplaceMeError(f"{path}: placed on {given['placement']!r}, which is none of {known}; fit it again")
    matrix = tensors["transform"]
    if matrix.ndim != 2 or matrix.dtype != torch.float64:
        raise ReplaceMeError(
            f"{path}: transform is {matrix.dtype} {list(matrix.shape)}, expected torch.float64 of 2 dimensions; fit it "
            "again"
        )
    recycled = Recycled.of(of_neurons, given["activation"], path) if recycles else None
    return Transform(matrix, recycled=recycled, **{name: given[name] for name in STAMPED})


def joint_report(groups: Sequence[Transform]) -> dict[str, Any]:
    """Return the report of a cut: of one group unchanged; of several their common part, and each report under
    `by_group`.

    `residual` is then the mean over the groups.
    """
    reports = [one.report for one in groups]
    if len(reports) == 1:
        return reports[0]
    shared = {key: value for key, value in reports[0].items() if all(one.get(key) == value for one in reports)}
    residuals = [one["residual"] for one in reports if "residual" in one]
    mean = {"residual": sum(residuals) / len(residuals)} if residuals else {}
    return {**shared, **mean, "by_group": reports}


def residual(statistics: Statistics, matrix: torch.Tensor) -> float:
    """Return the share of the target's energy that the map misses, `sum w |m T - r|^2 / sum w |r|^2`.

    Expanded, `(tr(T^T G T) - 2 tr(T^T C) + E) / E` with gram G, cross C and target_energy E, so no row is needed. The
    expansion cancels when the fit is near perfect or T is large: it is good to about 1e-16 of `|T|^2 |G| / E` (for
    least squares, 1e-8 of the residual up to condition numbers of 1e9 or so, 1e-6 at 1e12), and a negative result of
    that size is returned as 0. 1 for T = 0. Raises ReplaceMeError when E is not positive.
    """
    energy = float(statistics.target_energy)
    if not energy > 0:
        raise ReplaceMeError(f"the target has no energy ({energy:g} over {statistics.tokens} tokens): nothing to fit")
    matrix = matrix.to(statistics.gram)
    fitted = statistics.gram @ matrix - 2 * statistics.cross
    return max(0.0, 1.0 + float((matrix * fitted).sum()) / energy)


def r_squared(statistics: Statistics, matrix: torch.Tensor) -> float | None:
    """Return the coefficient of determination, `1 - sum w |m T - r|^2 / sum w |r - mean(r)|^2`; None for a constant
    target.

    The map adds no constant, so the value may be negative even for the best map.
    """
    energy = float(statistics.target_energy)
    spread = energy - float(statistics.sum_target.square().sum() / statistics.total_weight)
    if spread <= 1e-14 * energy:
        return None
    return 1.0 - residual(statistics, matrix) * energy / spread
