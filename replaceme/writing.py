"""Write a checkpoint made from another one, one safetensors shard at a time, so that no model is ever whole in memory.

What becomes of the tensors is told by a `Content`; shards, index, config, tokenizer, licence, model card and the
provenance record are written here, all at once or not at all.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.checkpoints import COMPANIONS, INDEX, SINGLE, Checkpoint
from replaceme.errors import ReplaceMeError
from replaceme.files import TEMPORARY, replacing, sha256_of_all, sync, write_safetensors
from replaceme.progress import progress
from replaceme.separate import CODE

if TYPE_CHECKING:
    import torch

SHARDS_AT_ONCE = 3  # in memory
Tensors = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Content:
    """What a new checkpoint holds.

    `kept` are the tensors of the source from which it is made; `rewritten` gives those of one shard under their new
    names, from what the source stores in it. `config` is its config.json; `code`: the file of code goes with it.
    """

    kept: Sequence[str]
    rewritten: Callable[[Tensors], Tensors]
    config: dict[str, Any]
    code: bool = False


def write_checkpoint(
    checkpoint: Checkpoint, content: Content, out: str | Path, provenance: dict[str, Any], card: str | None = None
) -> None:
    """Write a checkpoint to folder `out`, atomically, from the one that it is made of.

    `provenance` goes into replaceme.json with the SHA-256 of every file; `card` is the model card (README.md). Errors
    as in `check_out`.
    """
    check_out(checkpoint.folder, out)
    with replacing(out) as folder:
        folder.mkdir()
        _write_shards(checkpoint, content, folder)
        if content.code:
            shutil.copyfile(CODE, folder / CODE.name)
        (folder / "config.json").write_text(json.dumps(content.config, indent=2) + "\n", encoding="utf-8")
        for path in checkpoint.companions():
            shutil.copyfile(path, folder / path.name)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        record = {**provenance, "files": sha256_of_all(folder.iterdir())}
        (folder / "replaceme.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


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


def _write_shards(checkpoint: Checkpoint, content: Content, folder: Path) -> None:
    by_shard: dict[str, list[str]] = {}
    for name in content.kept:
        by_shard.setdefault(checkpoint.tensors[name][0], []).append(name)
    shards = sorted(by_shard)
    weight_map, total = {}, 0

    def write(number: int, shard: str) -> tuple[str, list[str], int]:
        tensors = content.rewritten(checkpoint.read(by_shard[shard]))
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, tensors, {"format": "pt"})
        sync(folder / file)  # now, so that the disk is at work while the next shard is read
        return file, list(tensors), sum(tensor.nbytes for tensor in tensors.values())

    with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
        written = threads.map(write, range(1, len(shards) + 1), shards)
        for file, names, size in progress(written, "folding", len(shards), "shard"):
            weight_map |= dict.fromkeys(names, file)
            total += size
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
