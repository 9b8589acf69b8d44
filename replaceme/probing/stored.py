"""Find the names under which a checkpoint holds a model's parameters, by their values: transformers renames some."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from replaceme.probing.unproved import Unproved
from replaceme.probing.writers import Weight


@dataclass(frozen=True)
class Stored:
    """Names in the checkpoint of a model.

    `blocks` is the prefix of blocks, `inside` the names in a block, and whether transposed, by those of the module's
    parameters, `*` for numbers; `others` the names outside of blocks.
    """

    blocks: str
    inside: dict[str, list[tuple[str, bool]]]
    others: dict[str, str]

    def places(self, weight: Weight) -> dict[str, bool]:
        """Return the patterns of a weight in checkpoints, those of the model itself too, and whether transposed."""
        names = [name for name in self.inside if weight.name in (name, _star(name))]
        found = {place: turned != weight.transposed for name in names for place, turned in self.inside[name]}
        if not found:
            raise Unproved(f"no tensor of its checkpoint holds {weight.name}")
        return {**found, weight.name: found.get(weight.name, weight.transposed)}

    def name_of(self, name: str) -> str:
        """Return the name in a block of a parameter that is stored as it is."""
        return next((place for place, turned in self.inside.get(name, ()) if not turned), name)

    def module_of(self, module: str | None) -> str | None:
        """Return the name in a block of a norm, None where it is the module's own, or there is none."""
        if module is None:
            return None
        found = self.name_of(f"{module}.weight").removesuffix(".weight")
        return None if found == module else found

    def outside(self, name: str) -> str:
        """Return the name of a parameter outside of blocks."""
        return self.others.get(name, name)


def stored_names(model: nn.Module, blocks: str, folder: Path) -> Stored:
    """Return the names in the checkpoint that the model has been saved to; raises Unproved where blocks have none."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    known: dict[bytes, tuple[str, bool]] = {}
    for name, one in tensors.items():
        if one.dim() == 2:
            known.setdefault(_key(one.mT), (name, True))
        if one.dim() == 3:
            known.setdefault(_key(one.mT), (name, True))
    for name, one in tensors.items():
        known[_key(one)] = (name, False)
    inside: dict[str, list[tuple[str, bool]]] = {}
    others: dict[str, str] = {}
    prefixes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        own = [(name, False)] if name in tensors and torch.equal(tensors[name], values) else []
        parts = values if values.dim() == 3 else ()
        places = own or [known[key] for key in [_key(values)] if key in known]
        places = places or [known[key] for key in map(_key, parts) if key in known]
        match = re.fullmatch(rf"{re.escape(blocks)}\.(\d+)\.(.+)", name)
        if match is None:
            others.update([(name, places[0][0])] if places else [])
            continue
        for place, turned in places:
            split = re.fullmatch(rf"(.+?)\.{match[1]}\.(.+)", place)
            if split is None:
                continue
            prefixes[split[1]] = prefixes.get(split[1], 0) + 1
            entry = (_star(split[2]) if len(places) > 1 else split[2], turned)
            held = inside.setdefault(match[2], [])
            if entry not in held:
                held.append(entry)
    if not prefixes:
        raise Unproved(f"its checkpoint has no tensors of {blocks} by number")
    return Stored(max(prefixes, key=lambda one: prefixes[one]), inside, others)


def _star(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def _key(values: torch.Tensor) -> bytes:
    return repr(tuple(values.shape)).encode() + values.contiguous().float().numpy().tobytes()
