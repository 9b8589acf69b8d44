"""Probe a config.json: find its architecture on a tiny model of random weights, prove it, and remember what was proved.

A probe takes seconds. It is made once for each tiny config: kept in this process, and in `__pycache__` for others,
until the code that can run in a probe, transformers or torch is another.
"""

import contextlib
import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, in_one_line, printable
from replaceme.core.files import write_text
from replaceme.models.family import Family
from replaceme.models.probed import PROPOSED
from replaceme.probing.describe import describe, tiny_of
from replaceme.probing.unproved import Unproved
from replaceme.provenance.code_hash import fingerprint
from replaceme.proving.proof import prove

KNOWN: dict[str, "Probe"] = {}
KEPT = Path(__file__).parent / "__pycache__"


@dataclass(frozen=True)
class Probe:
    """Result of a probe of a tiny config: the family and its proof, or the reason why nothing is proved."""

    model_type: str
    family: Family | None
    finding: str
    proof: dict[str, Any] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """Plain JSON of the probe; of the family what differs from Llama."""
        given = {} if self.family is None else asdict(self.family)
        usual = asdict(Family())
        family = {key: value for key, value in given.items() if value != usual[key]}
        return json.loads(json.dumps({**asdict(self), "family": family if given else None}))

    @staticmethod
    def of(record: dict[str, Any]) -> "Probe":
        """Return the probe of a `record`."""
        family = record["family"]
        tuples = {one.name for one in fields(Family) if isinstance(one.default, tuple)}
        if family is not None:
            family = Family(**{key: tuple(value) if key in tuples else value for key, value in family.items()})
        return Probe(record["model_type"], family, record["finding"], record["proof"])


def proved(config: dict[str, Any], where: str) -> Family:
    """Return the proved family of a config.json; raises ReplaceMeError, in one line, with what the probe found."""
    found = probe(config, where)
    if found.family is None:
        raise ReplaceMeError(
            f"{where}: model_type {printable(repr(config['model_type']))} is not supported: {found.finding}; "
            "docs/models.md says what can be done"
        )
    return found.family


def probe(config: dict[str, Any], where: str) -> Probe:
    """Return what a probe of a config.json finds."""
    try:
        tiny_config = tiny_of(config, where)
    except Unproved as error:
        return Probe(config["model_type"], None, str(error))
    key = _key(tiny_config)
    if key not in KNOWN:
        KNOWN[key] = _kept(key) or _keep(key, _probe(config, tiny_config))
    return KNOWN[key]


def _key(tiny_config: dict[str, Any]) -> str:
    import torch
    import transformers

    code = fingerprint(__name__)
    content = [tiny_config, code, transformers.__version__, torch.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _kept(key: str) -> Probe | None:
    """Return what an earlier process found."""
    try:
        return Probe.of(json.loads((KEPT / f"{key}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _keep(key: str, found: Probe) -> Probe:
    with contextlib.suppress(OSError):  # an installation that may not be written
        write_text(KEPT / f"{key}.json", json.dumps(found.record, indent=1))
    return found


def _probe(config: dict[str, Any], tiny_config: dict[str, Any]) -> Probe:
    model_type = config["model_type"]
    with tempfile.TemporaryDirectory(prefix="replaceme-probe-") as work:
        try:
            finding = describe(config, tiny_config, Path(work) / "tiny")
            PROPOSED[model_type] = finding.family
            proof = prove(Path(work) / "tiny", Path(work), finding.family)
        except Unproved as error:
            return Probe(model_type, None, str(error))
        except ReplaceMeError as error:
            said = re.sub(rf"{re.escape(work)}/\w+", "the small model", in_one_line(error))
            return Probe(model_type, None, said)
        except Exception as error:  # of a class that is run in ways that its authors may not have had in mind
            return Probe(model_type, None, f"the small model does not run ({in_one_line(error)})")
        finally:
            PROPOSED.pop(model_type, None)
    said = f"blocks at {finding.blocks}, M of {' + '.join(one.module for one in finding.writers)}"
    return Probe(model_type, finding.family, said, asdict(proof))
