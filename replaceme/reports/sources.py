"""Trace the numbers of a run to models, texts, versions and machines, by the records that its steps wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaceme.core.files import load_metadata, read_json
from replaceme.core.redaction import published
from replaceme.models.model_record import ModelRecord
from replaceme.provenance.environment import described
from replaceme.reports.render import Column, Part

SHOWN = 12  # hex digits of a hash


@dataclass(frozen=True)
class Records:
    """Paths of model.json, of tokens.safetensors and of measurements (evaluations, divergences, speeds)."""

    models: Sequence[Path]
    calibrations: Sequence[Path]
    measured: Sequence[Path]


def footnotes(records: Records) -> list[str]:
    """Return the lines below a table: versions, machines, commits of models, revisions of texts and of labelled
    images.
    """
    models = "; ".join(f"{name}: {row['source']}, {row['version']}" for name, row in _models(records).items())
    texts = dict.fromkeys(f"{row['calibration']}: {row['source']}, {row['version']}" for row in _calibrations(records))
    lines = [f"Models: {models}."] if models else []
    lines += [f"Calibration texts: {'; '.join(texts)}."] if texts else []
    images = dict.fromkeys(f"{row['labelled']}: {row['source']}, {row['version']}" for row in _labelled(records))
    lines += [f"Images: {'; '.join(images)}."] if images else []
    versions, machines = _measured(records)
    lines += [f"Versions ({len(paths)} results): {words}." for words, paths in versions.items()]
    return lines + [f"Measured on {words} ({len(paths)} results)." for words, paths in machines.items()]


def parts(records: Records) -> list[Part]:
    """Return the tables of models, calibration texts, labelled images (if any), versions and machines."""
    versions, machines = _measured(records)
    models = [{"model": name, **row} for name, row in _models(records).items()]
    labelled = _labelled(records)
    counted = [
        [{"what": words, "results": str(len(paths))} for words, paths in found.items()]
        for found in (versions, machines)
    ]
    return [
        _part("Models", ("model", "source", "version", "blocks", "parameters", "weights"), models),
        _part(
            "Calibration",
            ("model", "calibration", "source", "version", "sequences", "tokens", "ids"),
            _calibrations(records),
        ),
        *([_part("Images", ("labelled", "source", "version", "images"), labelled)] if labelled else []),
        _part("Versions", ("what", "results"), counted[0]),
        _part("Machines", ("what", "results"), counted[1]),
    ]


HEADERS = {
    "version": "revision or content",
    "weights": "SHA-256 of weights",
    "ids": "SHA-256 of token ids",
    "labelled": "labelled images",
    "tokens": "unmasked tokens",
    "what": "",
}


def _part(title: str, names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Part:
    columns = [Column(HEADERS.get(name, name), name) for name in names]
    return Part(title, columns, [[row[name] for name in names] for row in rows], [[False] * len(names) for _ in rows])


def _models(records: Records) -> dict[str, dict[str, str]]:
    """Describe each model, by its name in the config."""
    found = {}
    for path in records.models:
        record = ModelRecord.load(path)
        weights = [digest for name, digest in sorted(record.files.items()) if name.endswith(".safetensors")]
        more = f" and {len(weights) - 1} more" if len(weights) > 1 else ""
        found[Path(path).parent.name] = {
            "source": _source_of(record),
            "version": _commit(record.revision) or f"files {record.sha256[:SHOWN]}",
            "blocks": str(record.num_blocks),
            "parameters": f"{record.parameters:,}",
            "weights": f"{weights[0][:SHOWN]}{more}" if weights else "",
        }
    return found


def _source_of(record: ModelRecord) -> str:
    """Return the source of a model, for plain weights what they were dequantised from."""
    if record.dequantised is None:
        return published(record.source)
    return f"{published(record.dequantised['source'])}, dequantised ({record.dequantised['format']})"


def _calibrations(records: Records) -> list[dict[str, str]]:
    """Describe each calibration, for each model."""
    found = []
    for path in records.calibrations:
        record = load_metadata(path)
        content = _commit(record.get("revision")) or _commit(record.get("file_sha256"))
        found.append(
            {
                "model": Path(path).parts[-3],
                "calibration": Path(path).parts[-2],
                "source": _source(record),
                # the embedded generator has neither: its text is that of this version and of its seed
                "version": content or f"seed {record['seed']}",
                "sequences": str(record["samples"]),
                "tokens": f"{record['unmasked_tokens']:,}",
                "ids": record["sha256"][:SHOWN],
            }
        )
    return found


def _labelled(records: Records) -> list[dict[str, str]]:
    """Describe each set of labelled images that was used, once, with its commit or content."""
    found = []
    for path in records.measured:
        for name, one in read_json(path).get("data", {}).items():
            version = _commit(one["commit"] or one["sha256"])
            row = {"labelled": name, "source": one["source"], "version": version, "images": f"{one['images']:,}"}
            if row not in found:
                found.append(row)
    return found


def _source(record: Mapping[str, Any]) -> str:
    """Return the data with its configuration; of a mix each part with its number of sequences."""
    if record.get("mix"):
        return " + ".join(f"{one['taken']} of {_source(one)}" for one in record["mix"])
    name = f" ({record['name']})" if record.get("name") else ""
    return f"{published(str(record.get('dataset') or record.get('images')))}{name}"


def _commit(text: str | None) -> str:
    """Return a commit or hash shortened, a tag or branch unchanged."""
    if not text:
        return ""
    return text[:SHOWN] if len(text) >= 40 else text


def _measured(records: Records) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Return versions and machines in words, each with its results."""
    versions: dict[str, list[Path]] = {}
    machines: dict[str, list[Path]] = {}
    for path in records.measured:
        record: Any = read_json(path)
        words = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        versions.setdefault(words, []).append(path)
        machines.setdefault(described(record["hardware"]), []).append(path)
    return versions, machines
