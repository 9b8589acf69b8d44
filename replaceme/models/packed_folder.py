"""A quantised checkpoint folder as plain weights, unpacked one tensor at a time.

Opening it reads headers alone: names, shapes and types of the plain tensors, which are checked as those of any
checkpoint.
"""

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import read_json
from replaceme.dequantising.described import KEY, check_read, described
from replaceme.dequantising.packing import Packing, Parts
from replaceme.dequantising.registry import packing_of
from replaceme.models.checkpoints import checked, read_config
from replaceme.models.config_defaults import TYPES
from replaceme.models.language_model import check_beside
from replaceme.models.model_config import family_of
from replaceme.models.plain_view import STORED_AS, USUAL, PlainView
from replaceme.models.trust import check_no_code, companions
from replaceme.models.weights import AGAIN, INDEX, Stored, headers, shard_names

if TYPE_CHECKING:
    import torch

README = "README.md"
PACKED = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "I16", "I32")  # what no plain tensor is stored as


def open_packed_folder(source: Path) -> PlainView:
    """Return the plain weights of a quantised folder.

    Raises ReplaceMeError for one that is not quantised, for formats that are not read, and as `open_checkpoint`.
    """
    config = read_config(source)
    check_read(config.get(KEY), str(source))
    plain_config = without_packing(config)
    family_of(plain_config, str(source))  # what is wrong with the model itself is said first
    packing = packing_of(config, str(source))
    check_no_code(source)
    stored = dict(headers(source))
    weights = packing.weights(stored, str(source))
    tensors = {}
    reader = _Reader(source, stored)
    for name, parts in weights.items():
        if _is_plain(name, parts, stored, source):
            tensors[name] = stored[name]
        else:
            held = reader.parts(name, parts)
            main = stored[next(parts[end] for end in packing.packed if end in parts)]
            tensors[name] = (main[0], packing.plain_shape(held), STORED_AS[plain_config["dtype"]])
    checkpoint = checked(source, plain_config, tensors)
    if checkpoint.family.predicts:
        check_beside((path.name for path in source.iterdir()), str(source))
    return PlainView(
        source,
        checkpoint,
        described(config[KEY]),
        plain_config["dtype"],
        without_packing(read_json(source / "config.json", AGAIN)),
        _files(source),
        functools.partial(_plain, packing, reader, weights, plain_config["dtype"]),
        functools.partial(_copy_beside, source),
    )


class _Reader:
    """Reads stored tensors of a folder, whose shards stay open."""

    def __init__(self, folder: Path, stored: dict[str, Stored]) -> None:
        self._folder, self._stored = folder, stored
        self._opened = functools.cache(self._open)

    def __call__(self, name: str) -> "torch.Tensor":
        """Return one stored tensor."""
        return self._opened(self._stored[name][0]).get_tensor(name)

    def parts(self, name: str, parts: dict[str, str]) -> Parts:
        """Return the parts of a weight, by ending; they are read when they are needed."""
        shapes = {ending: self._stored[own][1] for ending, own in parts.items()}
        return Parts(f"{self._folder}: {name}", shapes, lambda ending: self(parts[ending]))

    def _open(self, shard: str) -> Any:
        from safetensors import safe_open

        return safe_open(self._folder / shard, framework="pt")


def _plain(packing: Packing, reader: _Reader, weights: dict[str, dict[str, str]], dtype: str, name: str):
    import torch

    parts = weights[name]
    return reader(name) if set(parts) == {""} else packing.unpacked(reader.parts(name, parts), getattr(torch, dtype))


def _is_plain(name: str, parts: dict[str, str], stored: dict[str, Stored], source: Path) -> bool:
    """Return whether a tensor is stored as it is; raises ReplaceMeError for a packed one without its scales."""
    if set(parts) != {""}:
        return False
    kind = stored[name][2]
    if kind in PACKED or (kind not in TYPES and name.endswith("weight")):
        raise ReplaceMeError(f"{source}: {printable(name)} is stored as {kind} without its scales; {AGAIN}")
    return True


def without_packing(config: dict[str, Any]) -> dict[str, Any]:
    """Return config.json of the plain weights: no quantisation, and a type."""
    found = {key: value for key, value in config.items() if key not in (KEY, "torch_dtype", "dtype")}
    given = config.get("dtype") or config.get("torch_dtype")
    return {**found, "dtype": given if given in STORED_AS else USUAL}


def _files(source: Path) -> list[str]:
    index = [INDEX] if (source / INDEX).is_file() else []
    beside = [path.relative_to(source).as_posix() for path in companions(source)]
    return ["config.json", *index, *shard_names(source), *beside]


def _copy_beside(source: Path, folder: Path) -> None:
    """Copy tokenizer, licence and other companions, and the model card, which may name the licence."""
    card = [source / README] if (source / README).is_file() else []
    for path in (*companions(source), *card):
        target = folder / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
