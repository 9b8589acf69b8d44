"""Restrict which files of a model's folder are read: files that lie in it, and none that could run.

Whoever wrote a checkpoint is not trusted. A link out of its folder would copy a foreign file, for example a key, into
the new model; a tokenizer may request code as a model may.
"""

import os
import re
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import read_json

# what is copied beside weights and config; everything else in a repository (pickles, code, other formats) is not
COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken",
    "tekken.json", "generation_config.json", "chat_template*", "additional_chat_templates/*.jinja",
    "*preprocessor_config.json", "processor_config.json",
    "modules.json", "sentence_*_config.json", "config_sentence_transformers.json",  # of sentence-transformers
    "[0-9]_*/config.json", "[0-9]_*/model.safetensors",
    "LICENSE*", "LICENCE*", "License*", "license*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
# with these names, or beginning like a tokenizer's file, lies what could run when it is loaded
RUNS = {".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc", ".sh", ".so"}
# JSON files of transformers beside config.json in which `auto_map` names code
SETTINGS = (
    "tokenizer_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "generation_config.json",
)  # fmt: skip
# of the Hub's cache: how a model's folder begins, and where in the cache files lie that several repositories share
MODEL = "models--"
SHARED = re.compile(r"blobs/([0-9a-f]{2})/\1[0-9a-f]{62}")
# entries of config.json by which transformers fetches kernels, where their value is `owner/name`
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def companions(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders that belong to its model and cannot run, sorted.

    Raises ReplaceMeError for a link out of the folder.
    """
    found = {path for pattern in COMPANIONS for path in folder.glob(pattern) if path.is_file()}
    kept = sorted(path for path in found if path.suffix not in RUNS)
    for path in kept:
        check_inside(folder, path)
    return kept


def check_inside(folder: Path, path: Path) -> None:
    """Raise ReplaceMeError where a file of a folder is a link out of it (in the Hub's cache: but to its blobs)."""
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    if not real.is_relative_to(home) and not _is_blob(home, real):
        raise ReplaceMeError(
            f"{path}: a link out of the folder, to {printable(real)}; put the file itself there, or remove the link"
        )


def _is_blob(home: Path, real: Path) -> bool:
    """Return whether a folder is a snapshot in the Hub's cache, and a file one of the blobs that it links to."""
    repository = home.parent.parent
    if home.parent.name != "snapshots" or not repository.name.startswith(MODEL):
        return False
    return real.parent == repository / "blobs" or bool(SHARED.fullmatch(os.path.relpath(real, repository.parent)))


def check_settings(config: dict[str, Any], where: str) -> None:
    """Raise ReplaceMeError for entries of a config.json that lead transformers to another config, or to code."""
    if "configuration_files" in config:
        raise ReplaceMeError(
            f"{where}: `configuration_files` names other files to be read in place of this one; remove the entry"
        )
    for key in KERNELS:
        if "/" in str(config.get(key) or ""):
            raise ReplaceMeError(f"{where}: `{key}` names a kernel to be fetched and run; remove the entry")


def check_no_code(folder: Path) -> None:
    """Raise ReplaceMeError where a file beside config.json asks to run code, or to change the model by an adapter.

    An adapter would be loaded with the weights, of which transforms are then computed, but folded into none.
    """
    if (folder / "adapter_config.json").exists():
        raise ReplaceMeError(
            f"{folder / 'adapter_config.json'}: an adapter, which transformers would load with the model; merge it "
            "into the weights, or remove it"
        )
    for name in SETTINGS:
        path = folder / name
        if not path.is_file():
            continue
        check_inside(folder, path)
        content = read_json(path, "download or copy it again")
        if isinstance(content, dict) and content.get("auto_map"):
            raise ReplaceMeError(
                f"{path}: wants to run its own code (auto_map), which is not allowed; remove `auto_map` where a class "
                "of transformers does"
            )


def check_runs_nothing_but(folder: Path, code: str) -> None:
    """Raise ReplaceMeError for any file in a folder, however deep, that could run, except the one of this name.

    With `trust_remote_code` transformers finds some by their place alone, such as custom_generate/generate.py. Links to
    folders are refused: transformers follows them, `rglob` does not.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and path.is_dir():
            raise ReplaceMeError(
                f"{printable(path)}: a link to a folder, in which code could lie; put the folder itself there, or "
                "remove the link"
            )
        check_inside(folder, path)
        if path.suffix in RUNS and path != folder / code:
            raise ReplaceMeError(f"{printable(path)}: could run when the model is loaded; remove it, or merge again")
