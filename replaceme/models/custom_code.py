"""Checkpoints that no architecture of transformers holds: their config and code, and the layers of placement `block`.

No weight of the original can take up a map of the whole residual stream, nor a pair of factors, nor a narrower residual
stream. So the checkpoint brings a small file of code with it (`modeling_replaceme`), which transformers runs only with
`trust_remote_code=True`. Its `model_type` is one that transformers does not know: without the code the layers would be
left out with a mere warning.
This package runs its own copy of the file, and only for folders whose file is the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json, sha256
from replaceme.core.places import Span, kept_halves
from replaceme.models.trust import check_no_code, check_runs_nothing_but
from replaceme.placements.block import LAYER

if TYPE_CHECKING:
    from replaceme.models.checkpoints import Checkpoint
    from replaceme.models.family import Family

CODE = Path(__file__).with_name("modeling_replaceme.py")
PREFIX = "replaceme_"
AUTO_MAP = {
    "AutoConfig": "modeling_replaceme.ReplaceMeConfig",
    "AutoModel": "modeling_replaceme.ReplaceMeModel",
    "AutoModelForCausalLM": "modeling_replaceme.ReplaceMeForCausalLM",
}


def separate_config(
    config: dict[str, Any], tensors: Sequence[str], absent: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return config.json of a checkpoint that holds these tensors of linear layers (by their names in it), and lacks
    modules (see `absent_modules`).
    """
    replacements = {name.removesuffix(f".{LAYER}.weight"): {"bias": False} for name in tensors}
    entries = {"replacements": replacements, "absent": absent}
    return coded_config(config, {key: one for key, one in entries.items() if one})


def absent_modules(checkpoint: "Checkpoint", groups: Sequence[Span]) -> dict[str, str]:
    """Return the modules that blocks of a shortened model lack, by their names in it, and what comes in their place.

    These are the attention or the MLP of each block of which only the other half is left, with its norms.
    """
    family, found = checkpoint.family, {}
    for new, halves in enumerate(kept_halves(checkpoint.num_blocks, groups)):
        if None not in halves:
            continue
        prefix = f"{family.blocks}.{next(one for one in halves if one is not None)}."
        inside = (name.removeprefix(prefix) for name in checkpoint.tensors if name.startswith(prefix))
        absent = stand_ins(family, inside, of_attention=halves[0] is None)
        found |= {f"{family.blocks}.{new}.{part}": kind for part, kind in absent.items()}
    return found


def stand_ins(family: "Family", tensors: Iterable[str], of_attention: bool) -> dict[str, str]:
    """Return the modules of a block's attention or MLP by their names in it, and what comes in their place where it
    lacks them; `tensors` are the names of the block's.
    """
    parts = {name.partition(".")[0] for name in tensors if family.attention.holds(name) == of_attention}
    main = (family.attention.fold if of_attention else family.fold[0]).partition(".")[0]
    kind = "attention" if of_attention else "zero"
    return {part: kind if part == main else "identity" for part in sorted(parts)}


def coded_config(config: dict[str, Any], entries: dict[str, Any]) -> dict[str, Any]:
    """Return config.json of a checkpoint that needs the code, with the entries that describe its changes to
    `config`.
    """
    return {
        **config,
        "architectures": [AUTO_MAP["AutoModelForCausalLM"].rpartition(".")[2]],
        "auto_map": AUTO_MAP,
        "model_type": PREFIX + config["model_type"],
        **entries,
    }


def check_architecture(checkpoint: "Checkpoint") -> None:
    """Raise ReplaceMeError where transformers would run a checkpoint as another `model_type` than it names.

    A checkpoint that brings code never does.
    """
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    named, taken = checkpoint.config["model_type"], type(loaded).model_type
    if named != taken:
        raise ReplaceMeError(
            f"{checkpoint.folder}: transformers takes this {named!r} for {taken!r}, which placement block, svd_llm and "
            "slicegpt cannot; use another placement or method"
        )


def is_separate(config: dict[str, Any]) -> bool:
    """Return whether a config.json is of a checkpoint with layers of its own, which brings the code for them."""
    return str(config["model_type"]).startswith(PREFIX)


def original_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json as the original architecture reads it; a foreign `auto_map` stays in."""
    original = {key: value for key, value in config.items() if (key, value) != ("auto_map", AUTO_MAP)}
    return {**original, "model_type": config["model_type"].removeprefix(PREFIX)}


def check_code(folder: str | Path) -> None:
    """Raise ReplaceMeError unless the code beside a checkpoint is this package's own, and no other code is
    requested.
    """
    settings = Path(folder) / "config.json"
    if read_json(settings, "merge again").get("auto_map") != AUTO_MAP:
        raise ReplaceMeError(f"{settings}: `auto_map` names other code than {CODE.name}, which is not run; merge again")
    check_no_code(Path(folder))
    check_runs_nothing_but(Path(folder), CODE.name)
    path = Path(folder) / CODE.name
    if not path.is_file() or sha256(path) != sha256(CODE):
        raise ReplaceMeError(
            f"{path}: missing, or not the file of this version of replaceme, which runs no other; merge again"
        )
