"""Checkpoint in, shorter checkpoint out: fold T, drop blocks, renumber, one safetensors shard at a time.

With row vectors M = a W^T, W the down projection [hidden, intermediate], M T = a (T^T W)^T, so W becomes T^T W,
computed in float64 and rounded once to the stored type. The model itself is never loaded.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.card import model_card
from replaceme.checkpoints import COMPANIONS, INDEX, SINGLE, Checkpoint, open_checkpoint
from replaceme.errors import ReplaceMeError
from replaceme.files import TEMPORARY, replacing, sha256, write_safetensors
from replaceme.models import PER_BLOCK_LISTS, pruned_config, require_foldable
from replaceme.progress import progress
from replaceme.provenance import versions

if TYPE_CHECKING:
    import torch

    from replaceme.transforms import Transform


def fold(weight: "torch.Tensor", transform: "torch.Tensor") -> "torch.Tensor":
    """T^T W in float64, in W's type; weight [hidden, intermediate], transform [hidden, hidden]."""
    return (transform.double().T @ weight.double()).to(weight.dtype)


def write_pruned(
    record: dict[str, Any], cut: dict[str, Any], transform: "Transform", out: str | Path, origin: dict[str, Any]
) -> dict[str, Any]:
    """Write the pruned checkpoint of a model record with its model card; returns what goes into replaceme.json.

    `origin` holds the hashes of what the transform was fitted on. Errors as in `merge`.
    """
    provenance = {
        "source": {key: record[key] for key in ("source", "revision", "architecture", "parameters", "files")},
        "cut": {key: value for key, value in cut.items() if key != "candidates"},
        "fit": transform.report,
        "origin": origin,
        "versions": versions(),
    }
    matrix = None if transform.report["solver"] == "identity" else transform.matrix
    merge(record["folder"], cut, matrix, out, provenance, model_card(provenance))
    return provenance


def merge(
    source: str | Path,
    cut: dict[str, Any],
    transform: "torch.Tensor | None",
    out: str | Path,
    provenance: dict[str, Any],
    card: str | None = None,
) -> None:
    """Write the pruned checkpoint to folder `out` (atomically): blocks [start, end) gone, T folded into the carrier.

    `transform` float64 [hidden, hidden], or None for the identity, which changes no tensor. `provenance` goes into
    replaceme.json with the SHA-256 of every file; `card` is the model card (README.md). Raises ReplaceMeError when
    the architecture cannot carry T or the cut and T do not belong to this model.
    """
    check_out(source, out)
    checkpoint = open_checkpoint(source)
    _check(checkpoint, cut, transform)
    with replacing(out) as folder:
        folder.mkdir()
        _write_shards(checkpoint, cut, transform, folder)
        config = pruned_config(with_derived_lists(checkpoint), cut["start"], cut["end"])
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for path in checkpoint.companions():
            shutil.copyfile(path, folder / path.name)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        record = {**provenance, "files": files}
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
    ours = {path for pattern in ("*.safetensors", INDEX, "README.md", *COMPANIONS) for path in out.glob(pattern)}
    if (out / "replaceme.json").is_file():
        ours |= {out / "replaceme.json", out / "config.json"}
    foreign = sorted(path.name for path in set(out.iterdir()) - ours if not path.name.startswith(TEMPORARY))
    if foreign:
        raise ReplaceMeError(
            f"{out}: is not empty (it holds {foreign[0]}) and would be replaced; choose another folder"
        )


def with_derived_lists(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json with the per-block lists spelt out that transformers derives from a pattern of block numbers."""
    config = dict(checkpoint.config)
    if not checkpoint.family.derived_lists:
        return config
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    for key in PER_BLOCK_LISTS:
        derived = getattr(loaded, key, None)
        if derived is not None and config.get(key) is None:
            config[key] = list(derived)
    return config


def _check(checkpoint: Checkpoint, cut: dict[str, Any], transform: "torch.Tensor | None") -> None:
    start, end = cut["start"], cut["end"]
    if cut.get("num_blocks", checkpoint.num_blocks) != checkpoint.num_blocks:
        raise ReplaceMeError(
            f"{checkpoint.folder}: the cut is of a model with {cut['num_blocks']} blocks, not this one"
        )
    if not 1 <= start <= end <= checkpoint.num_blocks:
        raise ReplaceMeError(
            f"{checkpoint.folder}: cut [{start}, {end}) does not lie in blocks 1 .. {checkpoint.num_blocks - 1}"
        )
    if transform is None:
        return
    require_foldable(checkpoint.config, str(checkpoint.folder))
    size = checkpoint.hidden_size
    if tuple(transform.shape) != (size, size):
        shape = " x ".join(map(str, transform.shape))
        raise ReplaceMeError(f"{checkpoint.folder}: transform is {shape}, the model's hidden size is {size}")
    if not bool(transform.isfinite().all()):
        raise ReplaceMeError(f"{checkpoint.folder}: the transform holds NaN or infinity; fit it again")


def _write_shards(checkpoint: Checkpoint, cut: dict, transform: "torch.Tensor | None", folder: Path) -> None:
    kept = {name: _new_name(checkpoint, name, cut) for name in checkpoint.tensors}
    kept = {name: new for name, new in kept.items() if new is not None}
    shards = [shard for shard in checkpoint.shards if any(checkpoint.tensors[name][0] == shard for name in kept)]
    target = _fold_target(checkpoint, cut) if transform is not None else None
    weight_map, total = {}, 0
    for number, shard in enumerate(progress(shards, "folding", unit="shard"), 1):
        names = [name for name in kept if checkpoint.tensors[name][0] == shard]
        tensors = _read(checkpoint.folder / shard, names)
        if target in tensors:
            tensors[target] = fold(tensors[target], transform)
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {kept[name]: tensor for name, tensor in tensors.items()}, {"format": "pt"})
        weight_map |= {kept[name]: file for name in names}
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _fold_target(checkpoint: Checkpoint, cut: dict) -> str:
    name = f"{checkpoint.family.blocks}.{cut['start'] - 1}.{checkpoint.family.fold}"
    if name not in checkpoint.tensors:
        raise ReplaceMeError(f"{checkpoint.folder}: no tensor {name}, into which the transform should be folded")
    return name


def _new_name(checkpoint: Checkpoint, name: str, cut: dict) -> str | None:
    """A tensor's name in the pruned checkpoint, or None when its block goes."""
    block = checkpoint.family.block_of(name)
    if block is None or block < cut["start"]:
        return name
    if block < cut["end"]:
        return None
    return checkpoint.family.renamed(name, block - (cut["end"] - cut["start"]))


def _read(path: Path, names: list[str]) -> dict[str, "torch.Tensor"]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}
