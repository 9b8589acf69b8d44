"""Probe a config.json: find its architecture on a tiny model of random weights, prove it, and remember what was proved.

A probe takes seconds. It is made once for each tiny config: kept in this process, and on disk for others until any file
of the package, transformers or torch is another.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.models.family import Family
from replaceme.models.probed import PROPOSED
from replaceme.probing.describe import describe, tiny_of
from replaceme.probing.unproved import Unproved
from replaceme.proving.proof import prove

KNOWN: dict[str, "Probe"] = {}


@dataclass(frozen=True)
class Probe:
    """What a probe of a tiny config has found: the family, or the reason why nothing is proved."""

    model_type: str
    family: Family | None
    finding: str
    proof: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The probe in plain JSON."""
        return asdict(self)


def proved(config: dict[str, Any], where: str) -> Family:
    """Return the proved family of a config.json; raises ReplaceMeError, in one line, with what the probe found."""
    found = probe(config, where)
    if found.family is None:
        raise ReplaceMeError(
            f"{where}: model_type {printable(repr(config['model_type']))} is not supported: {found.finding}; see "
            "docs/models.md"
        )
    return found.family


def probe(config: dict[str, Any], where: str) -> Probe:
    """Return what a probe of a config.json finds."""
    try:
        tiny_config = tiny_of(config, where)
    except Unproved as error:
        return Probe(config["model_type"], None, str(error))
    key = json.dumps([config["model_type"], tiny_config], sort_keys=True, default=str)
    if key not in KNOWN:
        KNOWN[key] = _probe(config, tiny_config)
    return KNOWN[key]


def _probe(config: dict[str, Any], tiny_config: dict[str, Any]) -> Probe:
    model_type = config["model_type"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="replaceme-probe-") as work:
        try:
            finding = describe(config, tiny_config, Path(work) / "tiny")
            PROPOSED[model_type] = finding.family
            proof = prove(Path(work) / "tiny", Path(work), finding.family)
        except Unproved as error:
            return Probe(model_type, None, str(error))
        except ReplaceMeError as error:
            return Probe(model_type, None, in_one_line(error).replace(work, "the small model"))
        finally:
            PROPOSED.pop(model_type, None)
    said = f"blocks at {finding.blocks}, M of {' + '.join(one.module for one in finding.writers)}"
    return Probe(model_type, finding.family, said, {**asdict(proof), "seconds": time.monotonic() - started})
