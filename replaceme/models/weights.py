"""Find the files of a folder that hold a checkpoint's weights, and read their headers: the index decides, or the one
file.

Other files that end like weights (`consolidated.safetensors`, another format of the same) are none of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.files import read_json
from replaceme.models.removed_weights import check_not_removed
from replaceme.models.trust import check_inside

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
AGAIN = "download or copy the checkpoint again"
Stored = tuple[str, tuple[int, ...], str]  # shard, shape and type of a tensor, as safetensors calls that


def item_bits(stored_type: str) -> int:
    """Return the bits of a number of a type as named by safetensors: 16 of BF16, 8 of F8_E4M3."""
    digits = re.search(r"\d+", stored_type)
    return int(digits[0]) if digits else 8  # BOOL


def shard_names(folder: Path) -> list[str]:
    """Return the file names of a checkpoint's shards, from the index or the single file; raises ReplaceMeError when
    none.
    """
    if (folder / SINGLE).is_file():  # before an index, as transformers does
        return [SINGLE]
    if (folder / INDEX).is_file():
        check_inside(folder, folder / INDEX)
        index = read_json(folder / INDEX, AGAIN)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ReplaceMeError(f"{folder / INDEX}: no `weight_map` of tensors to shards; download or copy it again")
        if not weight_map:
            raise ReplaceMeError(f"{folder / INDEX}: `weight_map` is empty; {AGAIN}")
        names = sorted(set(weight_map.values()))
        for name in names:
            if Path(name).name != name or name == ".." or not name.isprintable():
                raise ReplaceMeError(
                    f"{folder / INDEX}: shard {name!r} lies outside the folder; do not trust this file"
                )
            if not name.endswith(".safetensors"):
                raise ReplaceMeError(f"{folder / INDEX}: shard {name!r} is no .safetensors file; convert the weights")
        return names
    check_not_removed(folder)
    others = sorted(path.name for path in folder.glob("*.bin"))
    if others:
        raise ReplaceMeError(
            f"{folder}: no {SINGLE} and no {INDEX} (found {printable(others[0])}: pickles are not read; convert it to "
            "safetensors)"
        )
    raise ReplaceMeError(f"{folder}: no {SINGLE} and no {INDEX}; give the folder of a whole checkpoint")


def headers(folder: Path) -> Iterator[tuple[str, Stored]]:
    """Yield every tensor of a checkpoint's shards; raises ReplaceMeError for a shard that is missing or broken."""
    from safetensors import SafetensorError, safe_open

    for shard in shard_names(folder):
        path = folder / shard
        if not path.is_file():
            check_not_removed(folder)
            raise ReplaceMeError(f"{path}: missing shard; download or copy the checkpoint again")
        check_inside(folder, path)
        try:
            with safe_open(path, framework="np") as file:  # headers only: torch is not needed
                for name in file.keys():  # noqa: SIM118
                    view = file.get_slice(name)
                    yield name, (shard, tuple(view.get_shape()), view.get_dtype())
        except SafetensorError as error:
            raise ReplaceMeError(f"{path}: truncated or corrupted ({error}); download or copy it again") from error
