"""The costs of a model's parts in one unit: what it saves to do without each block, attention or MLP."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from math import ceil, floor
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json, write_json
from replaceme.core.places import Span, in_middle


@dataclass(frozen=True)
class PartCosts:
    """Costs in a unit `of` (see `config.units`): operations, bytes, seconds, or parameters.

    `total` is that of the whole model, `blocks` [L] those of each block; `attentions` and `mlps` [L] are those of its
    halves, None where it is not known to have any. `measured` says how: lengths, and of times the machine.
    """

    of: str
    total: float
    blocks: list[float]
    attentions: list[float] | None = None
    mlps: list[float] | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    model_sha256: str | None = None

    @property
    def block(self) -> float:
        """Mean over the blocks."""
        return sum(self.blocks) / len(self.blocks)

    def of_run(self, run: Span) -> float | None:
        """Return what it saves to remove the run [start, end); None where it divides blocks without known halves."""
        start, end = run
        found = sum(self.blocks[ceil(start) : floor(end)])
        if not in_middle(start) and not in_middle(end):
            return found
        if self.attentions is None or self.mlps is None:
            return None
        found += self.mlps[floor(start)] if in_middle(start) else 0
        return found + (self.attentions[floor(end)] if in_middle(end) else 0)

    def share(self, runs: Iterable[Span]) -> float | None:
        """Return the share of the whole that it saves to remove runs, None where that is not known."""
        saved = [self.of_run(run) for run in runs]
        return None if None in saved else sum(saved) / self.total

    def save(self, path: str | Path) -> None:
        """Write the file of a unit."""
        write_json(path, asdict(self))

    @staticmethod
    def load(path: str | Path) -> "PartCosts":
        """Read the file of a unit; raises ReplaceMeError for any other file."""
        content = read_json(path)
        names = {one.name for one in fields(PartCosts)}
        if not isinstance(content, dict) or set(content) != names:
            raise ReplaceMeError(f"{path}: not the costs of a model's parts; make it with `replaceme parts`")
        return PartCosts(**content)
