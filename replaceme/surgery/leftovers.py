"""Report what a new checkpoint leaves out of its source: tensors that are not loaded, files that are not copied.

Both are said in one line each, in the log and on the model card.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import RECORD
from replaceme.models.checkpoints import Checkpoint, local_folder, names_folder, open_checkpoint
from replaceme.models.custom_code import CODE
from replaceme.models.unloaded_tensors import predictors
from replaceme.models.weights import INDEX

if TYPE_CHECKING:
    from replaceme.config.schema import Config

SHOWN = 3
OURS = {"config.json", INDEX, "README.md", RECORD, CODE.name}  # what is made anew


def left_out(checkpoint: Checkpoint) -> list[str]:
    """Return a line for the tensors and one for the files that a new checkpoint will lack, where there are any."""
    lines = []
    if checkpoint.unloaded:
        lines.append(
            f"{len(checkpoint.unloaded)} tensors that transformers does not load ({_first(checkpoint.unloaded)})"
        )
    files = files_left(checkpoint)
    if files:
        lines.append(f"files that are neither weights nor of the tokenizer ({_first(files)})")
    return lines


def left_out_of_models(config: "Config") -> list[str]:
    """Return the lines of `left_out` for every local model of a table that can be opened."""
    lines = []
    for name in sorted({model for table in config.tables.values() for model in table.named("models")}):
        if names_folder(config.models[name].source):
            with suppress(ReplaceMeError):  # what is wrong with it is said elsewhere
                found = left_out(open_checkpoint(local_folder(config.models[name].source)))
                lines += [f"models.{name}: left out of what is made from it: {line}" for line in found]
    return lines


def files_left(checkpoint: Checkpoint) -> list[str]:
    """Return files and folders beside a checkpoint that are not copied, folders with a slash; hidden ones are
    ignored.
    """
    copied = {name.partition("/")[0] for name in (*OURS, *checkpoint.shards, *checkpoint.companions())}
    beside = sorted(path for path in checkpoint.folder.iterdir() if path.name not in copied)
    return [f"{path.name}/" if path.is_dir() else path.name for path in beside if not path.name.startswith(".")]


def on_card(lines: Sequence[str]) -> str:
    """Return the part of a model card that lists what was left out; empty if nothing was."""
    return "".join(f"\nLeft out of the source were {line}\n" for line in lines)


def without_predictors(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json of a checkpoint without the layers that predict further tokens, which are never loaded."""
    return config | dict.fromkeys(predictors(config), 0)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return printable(", ".join(names[:SHOWN])) + (f", {len(names) - SHOWN} more" if len(names) > SHOWN else "")
