"""Prove by numbers that a model of a described architecture can be shortened, on a tiny one in float32.

What is proved: a block whose weights of `fold` are zero loses exactly M; the checkpoint with T folded in, saved, loaded
by transformers, puts out what the original puts out whose blocks are skipped and whose M is mapped by hooks; unless it
is an encoder, it generates the same with a cache as without; and every block that stays is of the kind that it was.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replaceme.activations.capture import Wanted, capture, put_out
from replaceme.calibration.tokens import Tokens
from replaceme.core.cut_record import Cut
from replaceme.core.places import shown
from replaceme.models.checkpoints import open_checkpoint, read_config, with_derived_lists
from replaceme.models.family import Family
from replaceme.models.loading import load_text_model
from replaceme.placements.placement import bias_of
from replaceme.probing.kinds import Kind, changed_block, kind_of
from replaceme.probing.tiny import VOCABULARY
from replaceme.probing.unproved import Unproved
from replaceme.surgery.fold import merge
from replaceme.surgery.shortened_model import shortened
from replaceme.transforms.transform import Transform

EXACT = 1e-4  # of the largest value, in float32
TOKENS, PADDED, NEW = 12, 3, 8
SHORT, LONG = 1, 8  # runs of blocks that are tried, to find one after which the rest keep their kind
Groups = list[tuple[int, int]]


@dataclass(frozen=True)
class Proof:
    """The largest differences that were found, of the largest value, and the cuts that were tried."""

    lost: float
    folded: float
    cuts: tuple[Groups, ...]


def prove(folder: Path, work: Path, family: Family) -> Proof:
    """Return the proof for a saved tiny model; raises Unproved where a number differs."""
    family = family.of(read_config(folder))
    model = load_text_model(folder, "float32", "cpu")
    kinds = [kind_of(block) for block in family.block_modules(model.base_model)]
    cuts = list(_cuts(folder, family, kinds))
    lost = max(_lost(model, family, start - 1) for groups in cuts for start, _ in groups)
    if lost > EXACT:
        raise Unproved(f"a block without the weights {', '.join(family.fold)} loses something else than M ({lost:.1e})")
    folded = 0.0
    for number, groups in enumerate(cuts):
        folded = max(folded, _folded(folder, work / str(number), model, family, groups))
        if folded > EXACT:
            raise Unproved(
                f"the shortened model differs from the original with skipped blocks by {folded:.1e} of its largest "
                "logit"
            )
    return Proof(lost, folded, tuple(cuts))


def samples() -> Tokens:
    """Return two sequences, one of them padded on the left."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[1, :PADDED] = False
    return Tokens(torch.randint(4, VOCABULARY - 25, (2, TOKENS), generator=generator), mask)


def _cuts(folder: Path, family: Family, kinds: Sequence[Kind]) -> Iterator[Groups]:
    """Yield cuts until every kind of block has been a carrier; raises Unproved where none leaves the rest as it is."""
    config = with_derived_lists(open_checkpoint(folder))
    carried: list[Kind] = []
    reason = "no block can be removed"
    for carrier in range(len(kinds) - 1):
        if kinds[carrier] in carried:
            continue
        for size in range(SHORT, min(LONG, len(kinds) - carrier - 1) + 1):
            groups = [(carrier + 1, carrier + 1 + size)]
            if size == SHORT and carrier + 3 < len(kinds) - 1 and kinds[carrier + 3] not in carried:
                both = [*groups, (carrier + 4, carrier + 5)]
                if _keeps(config, family, both, kinds)[0]:
                    carried += [kinds[carrier], kinds[carrier + 3]]
                    yield both
                    break
            holds, why = _keeps(config, family, groups, kinds)
            if holds:
                carried.append(kinds[carrier])
                yield groups
                break
            reason = why
    if not carried:
        raise Unproved(reason)


def _keeps(config: dict[str, Any], family: Family, groups: Groups, kinds: Sequence[Kind]) -> tuple[bool, str]:
    """Return whether a cut leaves every other block as it is, and why not."""
    try:
        block = changed_block(config, family, groups, kinds, "the small model")
    except Exception as error:  # of the class, which may need a block of each kind
        return False, f"without blocks {shown(groups)} transformers cannot make it ({str(error).splitlines()[0]})"
    return (
        block is None,
        f"without blocks {shown(groups)}, block {block} is of another kind, as its config has no list of kinds",
    )


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def _lost(model: torch.nn.Module, family: Family, block: int) -> float:
    """Return the difference of M and what a block loses with its weights of `fold`, and biases, at zero."""
    given, wanted = samples(), Wanted(frozenset({block}), frozenset({block}))
    with_it = next(capture(model.base_model, family, [given], wanted))
    with _without(family, family.block_modules(model.base_model)[block]):
        without = next(capture(model.base_model, family, [given], wanted))
    added = with_it.mlp_output[block]
    lost = with_it.stream(block, added) - without.stream(block, added)
    return _difference(added[given.mask], lost[given.mask])


@contextmanager
def _without(family: Family, block: torch.nn.Module) -> Iterator[None]:
    parameters = dict(block.named_parameters())
    names = family.folded([f"{family.blocks}.0.{name}" for name in parameters], 0)
    chosen = {name.removeprefix(f"{family.blocks}.0.") for name in names}
    beside = {bias_of(name) for name in chosen}
    kept = {one: one.detach().clone() for name, one in parameters.items() if name in chosen | beside}
    with torch.no_grad():
        for one in kept:
            one.zero_()
        yield
        for one, value in kept.items():
            one.copy_(value)


def _transforms(family: Family, groups: Groups, hidden: int) -> list[Transform]:
    generator = torch.Generator().manual_seed(1)
    gain = None if family.post_norm is None else 0.7
    eye = torch.eye(hidden, dtype=torch.float64)
    noise = (torch.randn(hidden, hidden, generator=generator, dtype=torch.float64) for _ in itertools.count())
    report = {"solver": "least_squares", "residual": 0.5}
    return [Transform(eye + 0.3 * next(noise), report, gain=gain) for _ in groups]


def _folded(folder: Path, out: Path, model: torch.nn.Module, family: Family, groups: Groups) -> float:
    """Return the difference of the shortened model, loaded, and the original with hooks; checks its generation."""
    checkpoint = open_checkpoint(folder)
    found = _transforms(family, groups, checkpoint.hidden_size)
    removed = sum(end - start for start, end in groups)
    merge(folder, Cut(groups, removed, checkpoint.num_blocks, metric="given"), found, out, {})
    short = load_text_model(out, "float32", "cpu")
    given = samples()
    with torch.no_grad():
        plain = put_out(model, given)
        with shortened(model.base_model, family, groups, found):
            expected = put_out(model, given)
        folded = put_out(short, given)
    if not torch.isfinite(expected).all():
        raise Unproved("the original with skipped blocks puts out NaN or infinity")
    if _difference(expected, plain) < EXACT:
        raise Unproved("skipped blocks change nothing")
    if family.predicts:
        _check_generation(short, given)
    return _difference(folded, expected)


def _check_generation(model: torch.nn.Module, given: Tokens) -> None:
    """Raise Unproved unless a model generates the same tokens with a cache as without."""
    ids = given.input_ids[:1]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
    try:
        with torch.no_grad():
            one, other = (model.generate(ids, use_cache=cached, **options) for cached in (True, False))
    except Exception as error:
        raise Unproved(f"the shortened model does not generate ({str(error).splitlines()[0][:120]})") from error
    if not torch.equal(one, other):
        raise Unproved("the shortened model generates otherwise with a cache than without")
