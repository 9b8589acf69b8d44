"""The record of a model (model.json): its source, hashes of its files, and the sizes that cuts depend on."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from replaceme.config.units import PARAMETERS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json, write_json
from replaceme.models.part_costs import PartCosts

DEQUANTISED = "dequantised"  # key of a record: the format, the source, its commit and its files
# fields that records of earlier versions do not have
OLDER_LACK: dict[str, Any] = {"model_type": "", DEQUANTISED: None, "probe": None}
ADDED = ("probe", "costs")  # fields that model.json has only where they are known, or never


class Sizes(Protocol):
    """The sizes of a model on which cuts are decided; `block_parameters` has the number of each block, in order.

    `costs` are those of its parts in the unit of the cut, where that is another than parameters.
    """

    num_blocks: int
    parameters: int
    block_parameters: list[int]
    costs: PartCosts | None


@dataclass(frozen=True)
class ModelRecord:
    """A model as the `model` step writes it: `files` has the SHA-256 of each file, `revision` a commit of the Hub.

    `dequantised`, of plain weights made from quantised ones: their format, source, commit and files. `probe` is what
    was found and proved about its architecture, None where that is a listed one. `costs` are those of its parts in the
    unit of a cut; they are no part of the file.
    """

    source: str
    revision: str | None
    folder: str
    architecture: str
    model_type: str
    num_blocks: int
    hidden_size: int
    parameters: int
    block_parameters: list[int]
    files: dict[str, str]
    dequantised: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    costs: PartCosts | None = None

    @property
    def sha256(self) -> str:
        """Hash of the model: the SHA-256 over the names and hashes of its files."""
        return hashlib.sha256(json.dumps(self.files, sort_keys=True).encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """Part of replaceme.json about the model that a checkpoint was made from."""
        names = ("source", "revision", "architecture", "parameters", "files")
        made = {} if self.dequantised is None else {DEQUANTISED: self.dequantised}
        return {name: getattr(self, name) for name in names} | made | self._probed

    def with_costs(self, path: str | Path | None, unit: str) -> "ModelRecord":
        """Return the record with the costs of the model's parts in a file, if one is given, for a cut in a unit; raises
        ReplaceMeError for those of another model, and where the unit is parameters, which need no file.
        """
        if path is None:
            return self
        if unit == PARAMETERS:
            raise ReplaceMeError(
                f"{path}: costs are for a ratio of another unit than parameters; set `of`, or drop them"
            )
        costs = PartCosts.load(path)
        if costs.model_sha256 != self.sha256:
            raise ReplaceMeError(f"{path}: made from another model than {self.source}; make it again")
        return replace(self, costs=costs)

    def save(self, path: str | Path) -> None:
        """Write model.json."""
        content = {name: value for name, value in asdict(self).items() if name not in ADDED}
        write_json(path, content | self._probed)

    @property
    def _probed(self) -> dict[str, Any]:
        return {} if self.probe is None else {"probe": self.probe}

    @staticmethod
    def load(path: str | Path) -> "ModelRecord":
        """Read model.json; raises ReplaceMeError for any other file."""
        content = read_json(path)
        names = [one.name for one in fields(ModelRecord) if one.name != "costs"]
        if not isinstance(content, dict) or not set(names) <= content.keys() | OLDER_LACK.keys():
            raise ReplaceMeError(f"{path}: not a model record; make it with `replaceme model`")
        known = {**OLDER_LACK, **content}
        return ModelRecord(**{name: known[name] for name in names})
