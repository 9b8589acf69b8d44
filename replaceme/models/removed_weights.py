"""Recognise a checkpoint made here whose weights were removed when nothing more was to read them, and remove them.

Its record, config, card and tokenizer stay in its folder; the record lists the weights with their digests.
"""

from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, read_json


def weights_of(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of the weights in a checkpoint's record, by their names; none without a record that can be
    read.
    """
    path = Path(folder) / RECORD
    try:
        record = read_json(path) if path.is_file() else None
    except ReplaceMeError:  # whoever reads the checkpoint says what is wrong
        return {}
    files = record.get("files") if isinstance(record, dict) else None
    files = files if isinstance(files, dict) else {}
    return {name: digest for name, digest in files.items() if name.endswith(".safetensors")}


def missing_weights(folder: str | Path) -> list[str]:
    """Return the names of weights in a checkpoint's record that are not in its folder."""
    return [name for name in weights_of(folder) if not (Path(folder) / name).is_file()]


def are_removed(folder: str | Path) -> bool:
    """Return whether a checkpoint has a record and none of its weights."""
    weights = weights_of(folder)
    return bool(weights) and len(missing_weights(folder)) == len(weights)


def check_not_removed(folder: str | Path) -> None:
    """Raise ReplaceMeError for a checkpoint without its weights, which is not damaged."""
    if are_removed(folder):
        raise ReplaceMeError(
            f"{folder}: its weights were removed after their last use (`keep_models: false`); make them again: "
            f"`snakemake --cores 1 {Path(folder) / RECORD} --forcerun merge`, of a healed model `heal`"
        )


def remove_weights(folder: str | Path) -> None:
    """Remove the weights of a checkpoint; what is left after a kill on the way counts as removed where it is made
    again.
    """
    for name in weights_of(folder):
        (Path(folder) / name).unlink(missing_ok=True)
