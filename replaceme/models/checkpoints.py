"""The source of a model and the content of its folder, read from safetensors headers alone (no weights loaded).

`resolve` turns a local folder or a Hub id into a `ModelRecord`, from which all later steps start.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import DamagedError, ReplaceMeError, printable
from replaceme.core.files import RECORD, Check, check_files, read_json, sha256_of_all
from replaceme.core.places import Place, carrier_of
from replaceme.models.config_defaults import with_defaults, with_dtype
from replaceme.models.config_json import check_types
from replaceme.models.custom_code import is_separate, original_config
from replaceme.models.download import download
from replaceme.models.family import Family
from replaceme.models.language_model import check_beside, check_head
from replaceme.models.model_config import family_of, spelled_out
from replaceme.models.model_record import DEQUANTISED, ModelRecord
from replaceme.models.other_formats import check_is_checkpoint, is_gguf
from replaceme.models.probed import proof_of
from replaceme.models.removed_weights import check_not_removed
from replaceme.models.text_encoder import check_modules, with_beside
from replaceme.models.trust import check_inside, check_no_code, check_settings, companions
from replaceme.models.unloaded_tensors import named_as_unloaded, not_in_class
from replaceme.models.weights import AGAIN, INDEX, Stored, headers, item_bits, shard_names

if TYPE_CHECKING:
    import torch

STORED = ("BF16", "F16", "F32", "F64")  # as safetensors calls them
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors shards; `tensors` maps a tensor's name to its shard, shape and type.

    `unloaded` are the tensors of the shards that transformers does not load.
    """

    folder: Path
    config: dict[str, Any]
    family: Family
    tensors: dict[str, Stored]
    unloaded: dict[str, Stored] = field(default_factory=dict)

    @property
    def num_blocks(self) -> int:
        """L, the number of blocks."""
        return self.family.sizes(self.config)[self.family.depth]

    @property
    def hidden_size(self) -> int:
        """d, the width of the residual stream."""
        return self.family.sizes(self.config)[self.family.width]

    @property
    def shards(self) -> list[str]:
        """File names of the shards, in order."""
        return sorted({shard for shard, _, _ in (*self.tensors.values(), *self.unloaded.values())})

    @property
    def parameters(self) -> int:
        """Number of stored parameters that are loaded."""
        return sum(prod(shape) for _, shape, _ in self.tensors.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of the shards without the tensors that are not loaded."""
        unloaded = sum(prod(shape) * item_bits(kind) // 8 for _, shape, kind in self.unloaded.values())
        return sum((self.folder / shard).stat().st_size for shard in self.shards) - unloaded

    def block_parameters(self) -> list[int]:
        """Return the number of parameters of each block, in order."""
        counts = [0] * self.num_blocks
        for name, (_, shape, _) in self.tensors.items():
            block = self.family.block_of(name)
            if block is not None:
                counts[block] += prod(shape)
        return counts

    def folded(self, block: int) -> list[str]:
        """Return the weights of a block that a transform multiplies; raises ReplaceMeError when there are none."""
        names = self.family.folded(self.tensors, block)
        if not names:
            looked = " or ".join(f"{self.family.blocks}.{block}.{name}" for name in self.family.fold)
            raise ReplaceMeError(f"{self.folder}: no tensor {looked}, into which the transform should be folded")
        return names

    def carrying(self, start: Place) -> "Checkpoint":
        """Return the checkpoint for a map at a place, whose carrier's attention may have the part of an MLP."""
        return replace(self, family=self.family.carrying(start))

    def changeable(self, start: Place) -> list[str]:
        """Return the tensors of the carrier that a transform at a place may change, whatever its placement."""
        return self.family.carrying(start).changeable(self.tensors, carrier_of(start))

    def embedding(self, name: str) -> str:
        """Return the tensor that holds the embedding of this name: its own, or that of the tied head."""
        if name in self.tensors or not self.family.ties_head(self.config):
            return name
        return next((head for head in map("{}.weight".format, self.family.head) if head in self.tensors), name)

    def tensor(self, name: str) -> "torch.Tensor":
        """Return one tensor, as stored."""
        return self.read([name])[name]

    def read(self, names: Iterable[str]) -> dict[str, "torch.Tensor"]:
        """Return tensors by name, as stored."""
        from safetensors import safe_open

        found: dict[str, torch.Tensor] = {}
        wanted = list(names)
        for shard in sorted({self.tensors[name][0] for name in wanted}):
            with safe_open(self.folder / shard, framework="pt") as file:
                found |= {name: file.get_tensor(name) for name in wanted if self.tensors[name][0] == shard}
        return found

    def companions(self) -> list[str]:
        """Return the files other than weights and config that belong to the model, relative to the folder."""
        return [path.relative_to(self.folder).as_posix() for path in companions(self.folder)]


def open_checkpoint(folder: str | Path, separate: bool = False) -> Checkpoint:
    """Read a checkpoint's config and headers; raises ReplaceMeError when a file is missing, truncated or foreign.

    `custom_code` also takes one with linear layers of its own, as the checkpoint of the original architecture.
    """
    folder = Path(folder)
    config = read_config(folder)
    is_own = separate and is_separate(config)
    if is_own:
        config = original_config(config)
    family = family_of(config, str(folder))
    check_no_code(folder)
    check_modules(folder)
    checkpoint = checked(folder, config, dict(headers(folder)), is_own)
    if family.predicts:
        check_beside((path.name for path in folder.iterdir()), str(folder))
    return checkpoint


def checked(folder: Path, config: dict[str, Any], tensors: dict[str, Stored], is_own: bool = False) -> Checkpoint:
    """Return the checkpoint of a config and its tensors; raises ReplaceMeError where they are not of one model.

    `is_own`: with linear layers of its own.
    """
    family = family_of(config, str(folder))
    checkpoint = Checkpoint(folder, config, family.named_like(tensors), tensors)
    plain = family.predicts and not is_own
    if plain:
        checkpoint = _without(checkpoint, named_as_unloaded(checkpoint.family, config, tensors))
    _check_names(checkpoint)
    if plain:  # the class is asked last, as it makes as many blocks as config.json says
        checkpoint = _without(checkpoint, not_in_class(config, checkpoint.tensors))
    _check_dtypes(checkpoint)
    if family.predicts:
        check_head(checkpoint.family, family.ties_head(config), tensors, str(folder))
    return checkpoint


def with_derived_lists(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return config.json with explicit per-block lists where transformers derives them from a pattern of block
    numbers.
    """
    config = dict(checkpoint.config)
    if not checkpoint.family.derived_lists:
        return config
    from transformers import AutoConfig

    loaded = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    return spelled_out(config, checkpoint.family, loaded)


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read config.json of a local model folder."""
    folder = Path(folder)
    check_is_checkpoint(folder)
    check_inside(folder, folder / "config.json")
    config = read_json(folder / "config.json", AGAIN)
    if not isinstance(config, dict) or "model_type" not in config:
        raise ReplaceMeError(
            f"{folder}/config.json: no `model_type`: not a config of transformers; take that of the checkpoint"
        )
    check_types(config, f"{folder}/config.json")
    check_settings(config, f"{folder}/config.json")
    config = with_beside(config, (path.name for path in folder.iterdir()))
    return with_dtype(with_defaults(config, f"{folder}/config.json"), folder)


def local_files(source: str) -> list[Path]:
    """Return all files of a local model that its record hashes; raises ReplaceMeError when config or weights are
    missing.
    """
    folder = local_folder(source)
    if is_gguf(folder):
        return [folder]
    read_config(folder)
    index = [INDEX] if (folder / INDEX).is_file() else []
    return [folder / name for name in ("config.json", *index, *shard_names(folder))] + companions(folder)


def _without(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """Return a checkpoint that leaves more tensors unloaded."""
    kept = {name: one for name, one in checkpoint.tensors.items() if name not in names}
    unloaded = checkpoint.unloaded | {name: checkpoint.tensors[name] for name in sorted(names)}
    return replace(checkpoint, tensors=kept, unloaded=unloaded)


def _check_names(checkpoint: Checkpoint) -> None:
    blocks = {checkpoint.family.block_of(name) for name in checkpoint.tensors} - {None}
    expected = checkpoint.num_blocks  # whatever config.json says, which may be more than memory holds
    if len(blocks) != expected or max(blocks) != expected - 1:
        prefix = checkpoint.family.blocks
        raise ReplaceMeError(
            f"{checkpoint.folder}: config.json says {expected} blocks, the tensors named {prefix}.* hold "
            f"{len(blocks)}; config and weights are not of the same model, take those that belong together"
        )


def _check_dtypes(checkpoint: Checkpoint) -> None:
    for name, (shard, _, dtype) in checkpoint.tensors.items():
        if name.endswith("weight") and checkpoint.family.block_of(name) is not None and dtype not in STORED:
            raise ReplaceMeError(
                f"{checkpoint.folder / shard}: {printable(name)} is stored as {dtype}, of which nothing can be folded; "
                f"give weights in {', '.join(STORED)}"
            )


def resolve(source: str, revision: str | None = None) -> ModelRecord:
    """Return the record of a model: source, commit, folder, file hashes and sizes (hidden_size d, num_blocks L,
    parameters).

    A Hub id is downloaded (safetensors, config and tokenizer only); without network the cache is used.
    """
    folder, commit = locate(source, revision)
    checkpoint = open_checkpoint(folder)
    names = ["config.json", *checkpoint.shards, *checkpoint.companions()]
    names += [INDEX] if (folder / INDEX).is_file() else []
    return ModelRecord(
        source=source,
        revision=commit,
        folder=str(folder),
        architecture=(checkpoint.config.get("architectures") or [checkpoint.config["model_type"]])[0],
        model_type=checkpoint.config["model_type"],
        num_blocks=checkpoint.num_blocks,
        hidden_size=checkpoint.hidden_size,
        parameters=checkpoint.parameters,
        block_parameters=checkpoint.block_parameters(),
        files=sha256_of_all(folder, names),
        dequantised=_made_from(folder),
        probe=proof_of(checkpoint.config, source),
    )


def _made_from(folder: Path) -> dict[str, Any] | None:
    """Return what a folder was dequantised from by its record, None where it was not."""
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else None
    return record.get(DEQUANTISED) if isinstance(record, dict) else None


def local_folder(source: str) -> Path:
    """Return the folder that a local source names."""
    return Path(source).expanduser()


def names_folder(source: str) -> bool:
    """Return whether a source names a folder (or a GGUF file) rather than a Hub id: it or its parent exists, or it is
    spelt like a path.
    """
    if source.startswith(("/", "./", "../", "~")) or not HUB_ID.fullmatch(source):
        return True
    return Path(source).exists() or Path(source).parent.is_dir()


def locate(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the folder (or GGUF file) of a source, of a Hub id that in the cache, and its commit there."""
    if names_folder(source):
        if revision is not None:
            raise ReplaceMeError(f"{source}: a local folder has no revision; drop it")
        return local_folder(source), None
    folder = download(source, revision)
    return folder, folder.name


def is_record(path: str | Path) -> bool:
    """Return whether a path is that of a model.json, not a folder or a Hub id."""
    return Path(path).suffix == ".json" and Path(path).is_file()


def load_record(path: str | Path) -> ModelRecord:
    """Return a model.json written by the `model` step, or the record of a folder or Hub id given directly."""
    return ModelRecord.load(Path(path)) if is_record(path) else resolve(str(path))


def check_merged(folder: str | Path, check: Check = check_files) -> dict[str, Any]:
    """Return the provenance record of a merged folder; raises DamagedError when a file is missing or altered,
    ReplaceMeError when its weights were removed.

    `check` compares files with their digests.
    """
    folder = Path(folder)
    try:
        record = read_json(folder / RECORD)
        files = record["files"]
    except DamagedError as error:
        raise error.within(folder) from error
    except (KeyError, TypeError) as error:
        raise DamagedError(folder, "no list of files in it", folder / RECORD) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
        raise DamagedError(folder, "lists files outside of this folder", folder / RECORD)
    check_not_removed(folder)
    check(folder, files)
    return record
