"""What has to hold for every family, on a tiny model with random weights: tests/models/test_families.py demands it.

`python tests/family_checks.py` writes the table of docs/models.md anew.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, lru_cache
from pathlib import Path

import torch
from given import cut_of
from safetensors.torch import load_file
from tiny_families import BLOCKS, GROUPS, SCRATCH, VARIANTS, samples, source, transforms

from replaceme.activations.capture import Wanted, capture
from replaceme.activations.open_model import load_model
from replaceme.calibration.images import Images
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import Span
from replaceme.models.checkpoints import open_checkpoint, read_config
from replaceme.models.families import FAMILIES
from replaceme.models.model_config import check_fit, family_of, is_encoder
from replaceme.placements.placement import INPUT, REMOVED
from replaceme.surgery.fold import merge
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.transform import Transform

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
HALVES = [(0.5, 2.5), (4, 5)]  # one that begins in the middle of a block, and whole ones right after it
KEPT = [0, 3]
EXACT = 1e-5  # of the largest logit, in float32


def weights(variant: str) -> list[str]:
    """The weights that T goes into, a `*` for their numbers."""
    checkpoint = open_checkpoint(source(variant))
    names = [re.sub(r"\.\d+\.", ".*.", name) for block in KEPT for name in checkpoint.folded(block)]
    return sorted({name.removeprefix(f"{checkpoint.family.blocks}.*.") for name in names})


def takes(variant: str, **fit: object) -> bool:
    """Whether a family says that such a fit can be folded."""
    try:
        check_fit(read_config(source(variant)), variant, **fit)
    except ReplaceMeError:
        return False
    return True


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((one - other).abs().max() / other.abs().max())


def mlp_output_difference(variant: str) -> float:
    """Captured M against what a block loses with its down projection (and the bias) at zero."""
    config = read_config(source(variant))
    family = family_of(config, variant)
    model, given = whole(variant).base_model, samples(variant)
    blocks, mask, worst = family.block_modules(model), given.mask, 0.0
    for block in KEPT:
        wanted = Wanted(frozenset({block}), frozenset({block}))
        with_it = next(capture(model, family, [given], wanted))
        with _without_projection(blocks[block], family.fold):
            without = next(capture(model, family, [given], wanted))
        lost = (with_it.hidden_states[block] - without.hidden_states[block])[mask]
        worst = max(worst, difference(with_it.mlp_output[block][mask], lost))
    return worst


@contextmanager
def _without_projection(block: torch.nn.Module, patterns: Sequence[str]) -> Iterator[None]:
    """Let a block's down projections, and their biases, be zero for a while."""
    kept = {
        parameter: parameter.detach().clone()
        for name, parameter in block.named_parameters()
        if any(re.fullmatch(_weight_or_bias(pattern), name) for pattern in patterns)
    }
    with torch.no_grad():
        for parameter in kept:
            parameter.zero_()
        yield
        for parameter, value in kept.items():
            parameter.copy_(value)


def _weight_or_bias(pattern: str) -> str:
    return re.escape(pattern).replace(r"\*", r"\d+").replace("weight", "(weight|bias)")


def shorter(variant: str, found: list[Transform], groups: Sequence[Span] = GROUPS) -> Path:
    """A saved model without both runs of blocks."""
    out = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "out"
    merge(source(variant), cut_of(groups, BLOCKS), found, out, {})
    return out


@lru_cache(maxsize=1)
def whole(variant: str) -> torch.nn.Module:
    """The original, loaded once; who changes it puts it back."""
    return loaded(source(variant))


@lru_cache(maxsize=1)
def plainly_shorter(variant: str) -> Path:
    """Return the shortened model with plain maps."""
    return shorter(variant, transforms(variant, "mlp"))


@lru_cache(maxsize=1)
def folded_into_mlp(variant: str) -> torch.nn.Module:
    """Return the shortened model with plain maps, reloaded."""
    return loaded(plainly_shorter(variant))


def loaded(folder: Path) -> torch.nn.Module:
    """A model as the project loads it: with its head, or the tower of an encoder."""
    return load_model(folder, "float32", "cpu", head=not is_encoder(read_config(folder)))


@lru_cache(maxsize=1)
def like_folded(variant: str) -> torch.nn.Module:
    """Return a copy of `folded_into_mlp`, to be filled with the tensors of other checkpoints."""
    return deepcopy(folded_into_mlp(variant))


def reloaded(variant: str, folder: Path) -> torch.nn.Module:
    """Load a shortened model as the project does: quickly, where `folded_into_mlp` has its config, names and shapes.

    The library makes of such a folder what it made of that one, but for what the tensors hold.
    """
    model, tensors = like_folded(variant), load_file(folder / "model.safetensors")
    if read_config(folder) != read_config(plainly_shorter(variant)) or shapes(tensors) != shapes(model.state_dict()):
        return loaded(folder)
    model.load_state_dict(tensors, strict=False)  # it also has second names, of tied weights
    return model


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Return shapes by the first name of each tensor."""
    first = {tensor.data_ptr(): name for name, tensor in reversed(tensors.items())}
    return {name: tensors[name].shape for name in first.values()}


def outputs(model: torch.nn.Module, variant: str) -> torch.Tensor:
    """Logits of the unmasked tokens; of an encoder its last states, all norms included."""
    from replaceme.activations.capture import model_inputs

    given = samples(variant)
    with torch.no_grad():
        found = model(**model_inputs(model, given))
    return (found.last_hidden_state if isinstance(given, Images) else found.logits)[given.mask]


def fold_difference(variant: str, **fit: object) -> float:
    """Outputs of the shortened model, reloaded, against those of the original run with the transforms by hooks."""
    found = transforms(variant, **fit)
    config = read_config(source(variant))
    model = whole(variant)
    with shortened(model.base_model, family_of(config, variant), GROUPS, found):
        expected = outputs(model, variant)
    plain = fit == {"placement": "mlp"}
    found = folded_into_mlp(variant) if plain else reloaded(variant, shorter(variant, found))
    return difference(outputs(found, variant), expected)


def halves_difference(variant: str, placement: str) -> float:
    """Outputs of the model without HALVES, reloaded, against those of the original run with the transforms by hooks."""
    found, model = transforms(variant, placement, groups=HALVES), whole(variant)
    with shortened(model.base_model, family_of(read_config(source(variant)), variant), HALVES, found):
        expected = outputs(model, variant)
    return difference(outputs(loaded(shorter(variant, found, HALVES)), variant), expected)


def middle_difference(variant: str) -> float:
    """The captured state in the middle of a block against the block's input and what its attention is said to add."""
    family, given = family_of(read_config(source(variant)), variant), samples(variant)
    wanted = Wanted(frozenset({1, 1.5}), frozenset({1.5}))
    found = next(capture(whole(variant).base_model, family, [given], wanted))
    expected = found.hidden_states[1] + found.mlp_output[1.5]
    return difference(found.hidden_states[1.5][given.mask], expected[given.mask])


def generates(variant: str) -> bool:
    """Whether the shortened model generates the same with a cache as without."""
    model = folded_into_mlp(variant)
    given = {
        "input_ids": samples(variant).input_ids[:1],
        "max_new_tokens": 6,  # the prompt is longer than a window
        "do_sample": False,
        "eos_token_id": None,
    }
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    return torch.equal(model.generate(**given, use_cache=True), model.generate(**given, use_cache=False))


def config_consistent(variant: str) -> bool:
    """Whether the kept blocks are of the kinds that they were: lists by block, MLPs dense or mixed, attention."""
    before, after = whole(variant), folded_into_mlp(variant)
    family = family_of(read_config(source(variant)), variant)
    old, new = (family.block_modules(model.base_model) for model in (before, after))
    lists = [getattr(model.config, key, None) for key in family.lists for model in (before, after)]
    kept = [
        pair[0] is None or [pair[0][block] for block in KEPT] == list(pair[1])
        for pair in zip(lists[::2], lists[1::2], strict=True)
    ]
    same = [_kind(old[block]) == _kind(new[number]) for number, block in enumerate(KEPT)]
    return len(new) == len(KEPT) and all(kept) and all(same)


def _kind(block: torch.nn.Module) -> list[tuple[str, str, object]]:
    """Types of a block's modules, and how far their attention reaches."""
    return [(name, type(one).__name__, getattr(one, "sliding_window", None)) for name, one in block.named_modules()]


@cache
def row(variant: str) -> dict[str, str]:
    """The line of a family in docs/models.md."""

    def said(holds: bool) -> str:
        return "yes" if holds else "NO"

    def folded(**fit: object) -> str:
        return said(fold_difference(variant, **fit) <= EXACT) if takes(variant, **fit) else "-"

    family = FAMILIES[variant.partition(",")[0]]
    return {
        "`model_type`": variant,
        "T goes into": ", ".join(f"`{name}`" for name in weights(variant)),
        "M right": said(mlp_output_difference(variant) <= EXACT),
        "fold exact": folded(placement="mlp") + (" (direction)" if family.post_norm else ""),
        "`down_proj`": folded(placement="down_proj"),
        "`recycle`": folded(placement="down_proj", recycle=INPUT),
        "`removed`": folded(placement="down_proj", recycle=REMOVED),
        "`block`": folded(placement="block"),
        "`upstream`": folded(placement="upstream"),
        "generates": "-" if family.modality == "image" else said(generates(variant)),
        "config consistent": said(config_consistent(variant)),
    }


def table() -> str:
    """All families, in markdown."""
    rows = [row(variant) for variant in VARIANTS]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(one.values()) for one in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path) -> None:
    """Put the table in the place of the one in a page."""
    lines = path.read_text(encoding="utf-8").split("\n")
    first = next(number for number, line in enumerate(lines) if line.startswith("| `model_type` |"))
    last = next(number for number, line in enumerate(lines) if number > first and not line.startswith("|"))
    path.write_text("\n".join([*lines[:first], table(), *lines[last:]]), encoding="utf-8")


if __name__ == "__main__":
    write(DOCS)
