"""The result of a method, as the `fit` step writes and the `merge` and `verify` steps read it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_metadata, load_tensors, save_tensors

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Found:
    """Tensors by the method's names, and a report of plain numbers and strings (JSON without NaN)."""

    method: str
    tensors: "dict[str, torch.Tensor]"
    report: dict[str, Any]

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None:
        """Write a safetensors file atomically, with the report and JSON-able metadata."""
        save_tensors(path, self.tensors, {"method": self.method, "report": self.report, "metadata": metadata})

    @staticmethod
    def load(path: str | Path) -> tuple["Found", dict[str, Any]]:
        """Read a file of `save` as (found, metadata); raises ReplaceMeError on a wrong content."""
        tensors, stamp = load_tensors(path)
        if set(stamp) != {"method", "report", "metadata"}:
            raise ReplaceMeError(f"{path}: holds nothing that a method found; delete it and run again")
        bad = sorted(name for name, tensor in tensors.items() if not bool(tensor.isfinite().all()))
        if bad:
            raise ReplaceMeError(f"{path}: {bad[0]} holds NaN or infinity; fit it again")
        return Found(stamp["method"], tensors, stamp["report"]), stamp["metadata"]


def is_found(path: str | Path) -> bool:
    """Return whether a transform.safetensors holds the result of a method rather than linear maps."""
    return "method" in load_metadata(path)
