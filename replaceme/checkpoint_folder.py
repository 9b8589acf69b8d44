"""The folder of a checkpoint that is made here: what it may replace, and what lies in it beside the weights."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from replaceme.checkpoints import COMPANIONS, INDEX, Checkpoint
from replaceme.errors import ReplaceMeError
from replaceme.files import TEMPORARY, sha256_of_all
from replaceme.separate import CODE


def check_out(source: str | Path, out: str | Path) -> None:
    """Raise ReplaceMeError when folder `out` holds anything that an earlier merge would not have written.

    The folder is replaced as a whole, so neither the source nor somebody's own files may be in it.
    """
    out = Path(out)
    if Path(source).resolve().is_relative_to(out.resolve()):
        raise ReplaceMeError(f"{out}: holds the source model and would be overwritten; choose another folder")
    if not out.is_dir():
        return
    patterns = ("*.safetensors", INDEX, "README.md", CODE.name, *COMPANIONS)
    ours = {path for pattern in patterns for path in out.glob(pattern)}
    if (out / "replaceme.json").is_file():
        ours |= {out / "replaceme.json", out / "config.json"}
    foreign = sorted(path.name for path in set(out.iterdir()) - ours if not path.name.startswith(TEMPORARY))
    if foreign:
        raise ReplaceMeError(
            f"{out}: is not empty (it holds {foreign[0]}) and would be replaced; choose another folder"
        )


def complete(
    folder: Path,
    source: Checkpoint,
    config: Mapping[str, Any],
    digests: Mapping[str, str],
    provenance: Mapping[str, Any],
    card: str | None,
) -> None:
    """Write what a folder of weights lacks: config.json, the source's companions, a model card, and replaceme.json.

    The last is `provenance` with the SHA-256 of every file; `digests` has those that are known, by file name.
    """
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in source.companions():
        shutil.copyfile(path, folder / path.name)
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    others = sha256_of_all(path for path in folder.iterdir() if path.name not in digests)
    record = {**provenance, "files": dict(sorted((digests | others).items()))}
    (folder / "replaceme.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
