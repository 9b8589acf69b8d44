"""Load the config of a workflow from files and from the values that the command line adds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from replaceme.config.including import read_config
from replaceme.config.result_paths import RESULTS
from replaceme.config.schema import Config, parse
from replaceme.evaluation.overlap import all_seen_texts
from replaceme.planning.check_local import check_inputs, sparse_calibrations
from replaceme.workflow.snakemake_lock import check_folders

SCALAR = re.compile(r"[-+.\w]+")  # what may be a number, a boolean or null


def load_config(files: Sequence[str | Path], given: Mapping[str, Any]) -> tuple[Config, str]:
    """Read and validate config files, each overriding those before it, and the values `given` by `--config`.

    Returns the config and what messages call it. Snakemake has read the same files, but lets a key given twice pass and
    knows no `include`. Raises ReplaceMeError with every error, one line each.
    """
    found = [read_config(path) for path in files]
    origin = " + ".join(one.origin for one in found) or "config"
    whole: dict[str, Any] = {}
    for part in [*(one.sections for one in found), typed(dict(given))]:
        whole = merged(whole, part)
    return parse(whole, origin, [line for one in found for line in one.problems]), origin


def check_config(config: Config, origin: str) -> list[str]:
    """Check the needs of a run on this machine; raises ReplaceMeError, and returns a line for each warning."""
    check_folders(RESULTS, config.models)
    check_inputs(config, origin)
    return [f"{origin}: {line}" for line in (*sparse_calibrations(config), *all_seen_texts(config))]


def typed(value: Any) -> Any:
    """Return a value given with `--config`, whose nested numbers Snakemake leaves as text, with the types of YAML."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return yaml.safe_load(value) if isinstance(value, str) and SCALAR.fullmatch(value) else value


def merged(below: Any, above: Any) -> Any:
    """Merge nested mappings as Snakemake does; values that are no mappings are replaced."""
    if not isinstance(above, Mapping):
        return above
    below = below if isinstance(below, Mapping) else {}
    return {**below, **{key: merged(below.get(key), value) for key, value in above.items()}}
