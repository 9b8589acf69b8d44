"""Choose the cut: which runs of blocks go, by distance (the paper) or by the error after the fit.

Every candidate [start, end) with 1 <= start and end = start + n <= L competes; with `halves` also those from the middle
of a block to that of another, [start - 0.5, end - 0.5). Ties go to the lower start.

- cosine, angular, l2, bi, cka, cca: distance of hidden_states[start-1] and hidden_states[end-1] (eq. 4; `distances`).
- residual, cosine_after_fit, loss, kl: what is left after the least-squares fit of each (`candidates`).
- perplexity, taylor: what is left of the model without each (`without_fit`).
- output: what is left of the model's last states when blocks are merged, one run after another (`laco_search`).
- kl_without: how far the model is without single attentions and MLPs, one after another (`sublayers`).
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from replaceme.config.cuts import CutConfig
from replaceme.config.metrics import middle
from replaceme.config.units import PARAMETERS
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import HALF, Place, Span, block_of, in_middle, plain, shown
from replaceme.cuts.groups import Costs, check_room, dynamic, greedy, independent, least, merged, sizes_needed
from replaceme.models.model_record import Sizes
from replaceme.models.part_costs import PartCosts

if TYPE_CHECKING:
    import torch


def spans(num_blocks: int, blocks: int, halves: bool = False) -> list[Span]:
    """Return all candidate cuts [start, end) of `blocks` blocks, by their start; raises ReplaceMeError when none leaves
    a carrier.

    `halves`: also those that begin in the middle of a block.
    """
    if not 1 <= blocks < num_blocks:
        raise ReplaceMeError(
            f"cut: cannot remove {blocks} of {num_blocks} blocks: block 0 must stay as the carrier; "
            f"remove at most {num_blocks - 1}"
        )
    whole = [(start, start + blocks) for start in range(1, num_blocks - blocks + 1)]
    return sorted([*whole, *((start - HALF, end - HALF) for start, end in whole)]) if halves else whole


def costs_of(cut: CutConfig, record: Sizes) -> PartCosts:
    """Return what the parts of a model cost in the unit of a cut; raises ReplaceMeError where that is not known."""
    if not cut.needs_costs:
        return PartCosts(PARAMETERS, record.parameters, record.block_parameters)
    if record.costs is None or record.costs.of not in ("", cut.of):
        raise ReplaceMeError(
            f"cut: a share of {cut.of} needs what the parts of the model cost: --costs, made by `replaceme parts MODEL "
            f"--of {cut.of}`"
        )
    if record.costs.block <= 0:
        raise ReplaceMeError(f"cut: the blocks of this model cost no {cut.of}; take another unit `of`")
    return record.costs


def resolve_blocks(cut: CutConfig, record: Sizes) -> int:
    """Return the number of blocks to remove: `blocks`, or the one whose share, in the unit `of`, is nearest to
    `ratio`.
    """
    if cut.blocks is not None:
        return cut.blocks
    costs = costs_of(cut, record)
    wanted = cut.ratio * costs.total / costs.block
    if wanted > record.num_blocks - 0.5:
        most = costs.block * (record.num_blocks - 1) / costs.total
        raise ReplaceMeError(f"cut: ratio {cut.ratio} is out of reach; all blocks but one are {most:.3f} of the model")
    return max(1, round(wanted))


def sizes_of(cut: CutConfig, record: Sizes) -> list[int]:
    """Return the run sizes that a cut section compares."""
    return sizes_needed(resolve_blocks(cut, record), cut.groups, cut.search)


def possible_spans(cut: CutConfig, record: Sizes) -> list[Span]:
    """Return all candidates of a cut section on a model; raises ReplaceMeError when its size, start or groups do not
    fit.
    """
    blocks = resolve_blocks(cut, record)
    possible = spans(record.num_blocks, blocks, cut.in_middle)
    if cut.start is not None and (cut.start, cut.start + blocks) not in possible:
        first, last = (possible[end][0] for end in (0, -1))
        raise ReplaceMeError(
            f"cut: start {cut.start} with {blocks} blocks does not fit; start {cut.start} must lie between {first} and "
            f"{last}"
        )
    if cut.search == "merging":
        return _without_kept(cut, record.num_blocks, blocks, spans(record.num_blocks, 1))
    if cut.search == "sublayers":
        return sublayers(cut, record)
    sizes = sizes_of(cut, record)
    check_room(record.num_blocks, blocks, cut.groups, cut.search, cut.adjacency)
    found = [span for size in sizes for span in spans(record.num_blocks, size, cut.in_middle)]
    return _without_kept(cut, record.num_blocks, blocks, found) if cut.single else found


def sublayers(cut: CutConfig, record: Sizes) -> list[Span]:
    """Return all single attentions and MLPs of the blocks that may lose theirs, as runs [start, end) of half a block;
    raises ReplaceMeError where these are fewer than the blocks to remove.
    """
    blocks = _without_kept(cut, record.num_blocks, resolve_blocks(cut, record), spans(record.num_blocks, 1))
    return [run for start, end in blocks for run in ((start, start + HALF), (start + HALF, end))]


def _without_kept(cut: CutConfig, num_blocks: int, blocks: int, found: list[Span]) -> list[Span]:
    """Return single blocks without the first and the last that stay; raises ReplaceMeError when too few are left."""
    found = [(start, end) for start, end in found if start >= cut.keep_first and end <= num_blocks - cut.keep_last]
    if len(found) < blocks:
        raise ReplaceMeError(
            f"cut: cannot remove {blocks} of {num_blocks} blocks: the first {cut.keep_first} and the last "
            f"{cut.keep_last} stay; remove at most {len(found)}"
        )
    return found


def choose(
    cut: CutConfig,
    record: Sizes,
    distances: dict[str, "torch.Tensor"] | None = None,
    candidates: list[dict[str, Any]] | None = None,
    needed: Collection[Span] = (),
) -> Cut:
    """Return the contents of cut.json: the groups [start, end) to remove, the metric, and every candidate with its
    value.

    `distances` are needed for the metrics of pairs of states, `candidates` for the others, neither for a cut placed by
    hand. `needed` are runs that must stay, and so are no candidates; raises ReplaceMeError where too few others are
    left.
    """
    possible = [span for span in possible_spans(cut, record) if span not in needed]
    listed = _listed(cut, possible, distances, candidates)
    parts, blocks = _search(cut, listed, possible, record)
    merges = _merges(listed, blocks) if cut.search == "merging" else []
    several = {"parts": parts, "search": cut.search, "adjacency": cut.adjacency} if cut.several else {}
    return Cut(
        groups=merged(parts),
        blocks=blocks,
        num_blocks=record.num_blocks,
        metric="given" if cut.start is not None else cut.metric,
        position=None if cut.start is not None else cut.position,
        coefficients=[one["coefficients"] for one in merges] or None,
        candidates=listed,
        budget=_budget(cut, record, parts, listed),
        **several,
    )


def _budget(cut: CutConfig, record: Sizes, parts: list[Span], listed: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what was to be saved, and the share that the runs save as far as that is known; None of mere blocks."""
    if cut.ratio is None and not cut.needs_costs:
        return None
    costs = costs_of(cut, record)
    if cut.search == "sublayers":
        saved = sum(one[cut.of] for one in kept_entries(listed)) / costs.total
    else:
        saved = costs.share(merged(parts))
    found = {"of": cut.of, "ratio": cut.ratio, "saved": saved, "measured": costs.measured or None}
    return {key: value for key, value in found.items() if value is not None}


def _listed(
    cut: CutConfig,
    possible: list[Span],
    distances: dict[str, "torch.Tensor"] | None,
    candidates: list[dict[str, Any]] | None,
) -> list[dict[str, Any]]:
    """Return the candidates with their values, none of a cut placed by hand."""
    if cut.start is not None:
        return []
    if cut.search in ("iterative", "merging"):
        return candidates
    if cut.search == "sublayers":
        return _of_sublayers(candidates, possible, cut.of)
    if cut.needs_candidates:
        return _measured(candidates, possible, cut.metric)
    name = f"{cut.metric}_{cut.position}"
    return [{"start": span[0], "end": span[1], cut.metric: distance_of(distances, name, span)} for span in possible]


def kept_entries(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a search has kept of all that it tried."""
    return [one for one in tried if one["kept"]]


def _of_sublayers(candidates: list[dict[str, Any]], possible: list[Span], unit: str) -> list[dict[str, Any]]:
    """Return the candidates; raises ReplaceMeError unless they are of the search of sublayers in a unit."""
    tried = {(one["start"], one["end"]) for one in candidates if {"kept", "kl_without", unit} <= one.keys()}
    if not tried or not tried <= set(possible):
        raise ReplaceMeError(
            f"cut: the candidates measured are not those of single sublayers by {unit}; measure them again"
        )
    return candidates


def kept_merges(tried: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tried merges that are part of a search's result, in order: kept, and in no later one."""
    found: list[dict[str, Any]] = []
    for entry in tried:
        if entry["kept"]:
            found = [entry, *(one for one in found if one["start"] > entry["end"])]
    return found


def removed_by(tried: list[dict[str, Any]]) -> int:
    """Return how many blocks a search by merging removes."""
    return sum(one["end"] - one["start"] for one in kept_merges(tried))


def _merges(candidates: list[dict[str, Any]], blocks: int) -> list[dict[str, Any]]:
    if not all("kept" in one for one in candidates) or removed_by(candidates) != blocks:
        raise ReplaceMeError(
            f"cut: the candidates measured are not those of merging {blocks} blocks; measure them again"
        )
    return kept_merges(candidates)


def _search(
    cut: CutConfig, listed: list[dict[str, Any]], possible: list[Span], record: Sizes
) -> tuple[list[Span], Place]:
    """Return the runs to remove, and how many blocks they are together."""
    blocks, num_blocks = resolve_blocks(cut, record), record.num_blocks
    if cut.start is not None:
        return [(cut.start, cut.start + blocks)], blocks
    if cut.search == "merging":
        return [(one["start"], one["end"]) for one in _merges(listed, blocks)], blocks
    if cut.search == "sublayers":
        parts = sorted((one["start"], one["end"]) for one in kept_entries(listed))
        return parts, plain(len(parts) * HALF)
    if cut.search == "iterative":
        return _least_of_rounds(listed, possible, cut.metric, blocks), blocks
    costs = _costs(listed, cut.metric)
    if cut.search == "dynamic":
        return dynamic(costs, num_blocks, blocks, cut.groups, cut.adjacency), blocks
    if cut.single and len(costs) < blocks:
        raise ReplaceMeError(f"cut: {blocks} blocks to remove, {len(costs)} candidates; remove fewer")
    if cut.single:
        return independent(costs, blocks), blocks
    return greedy(costs, num_blocks, cut.groups, cut.adjacency), blocks


def _costs(listed: list[dict[str, Any]], metric: str) -> Costs:
    return {(one["start"], one["end"]): one[metric] for one in listed}


def _least_of_rounds(listed: list[dict[str, Any]], possible: list[Span], metric: str, blocks: int) -> list[Span]:
    """Return the run of least value in each round, each of which measured the remaining runs."""
    gone: list[Span] = []
    for number in range(blocks):
        costs = _costs([one for one in listed if one.get("round") == number and metric in one], metric)
        if set(costs) != set(possible) - set(gone):
            raise ReplaceMeError(
                f"cut: the candidates measured are not those of round {number} of {blocks} by {metric}; measure them "
                "again"
            )
        gone.append(least(costs))
    return sorted(gone)


def _measured(candidates: list[dict[str, Any]], possible: list[Span], metric: str) -> list[dict[str, Any]]:
    """Return the measured candidates that a cut compares, in order."""
    known = {(one["start"], one["end"]): one for one in candidates if metric in one}
    missing = next((span for span in possible if span not in known), None)
    if missing is not None:
        start, end = missing
        raise ReplaceMeError(
            f"cut: the candidates measured are not those of {end - start} blocks: no {metric} of [{start}, {end}); "
            "measure them again"
        )
    return [known[span] for span in possible]


def distance_of(distances: dict[str, "torch.Tensor"], name: str, span: Span) -> float:
    """Return the distance `metric_position` of the states before and after a cut; raises ReplaceMeError where it was
    not measured.
    """
    metric, start, end = name.partition("_")[0], *(block_of(place - 1) for place in span)
    name = middle(name) if in_middle(span[0]) else name
    if name not in distances:
        raise ReplaceMeError(
            f"cut: the distances hold no {metric} of cut {shown([span])}; measure them with `--representations` for "
            "cka and cca (cca with two calibration tokens or more for each channel), with `--halves` for the middle of "
            "blocks"
        )
    return float(distances[name][start, end])
