"""The choice of the cut: which runs of blocks go, by distance (the paper) or by what is left after the fit.

Every candidate [start, end) with 1 <= start and end = start + n <= L competes; ties go to the lower start.

- cosine, angular, l2, bi, cka, cca: distance of hidden_states[start-1] and hidden_states[end-1] (eq. 4; `distances`).
- residual: 1 - R^2 of the least-squares fit, sum |M T - R|^2 / sum |R|^2, from the statistics alone.
- cosine_after_fit: mean over tokens of 1 - cos(Y + M T, hidden_states[end-1]), Y = hidden_states[start-1] - M, with the
  T of that candidate: a second pass over the same tokens.

The statistics of all candidates come from one pass. Memory: a pair of float64 [d, d] for each, L - n for one size.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from replaceme.config import CutConfig
from replaceme.data import Tokens
from replaceme.errors import ReplaceMeError
from replaceme.grouping import Costs, Span, check_room, dynamic, greedy, merged, sizes_needed
from replaceme.models import Family
from replaceme.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from replaceme.capture import Activations


log = logging.getLogger(__name__)
ENOUGH = 4  # tokens for each channel below which a post-fit metric is doubtful


def groups_of(cut: dict[str, Any]) -> list[tuple[int, int]]:
    """The runs of blocks [start, end) that a cut.json removes, in order."""
    return [(start, end) for start, end in cut["groups"]]


def described(cut: dict[str, Any]) -> str:
    """The runs of blocks of a cut.json as text, `[2, 5), [7, 10)`."""
    return ", ".join(f"[{start}, {end})" for start, end in groups_of(cut))


def spans(num_blocks: int, blocks: int) -> list[tuple[int, int]]:
    """All candidate cuts [start, end) of `blocks` blocks; raises ReplaceMeError when none leaves a carrier."""
    if not 1 <= blocks < num_blocks:
        raise ReplaceMeError(
            f"cut: cannot remove {blocks} of {num_blocks} blocks: block 0 must stay as the carrier; "
            f"remove at most {num_blocks - 1}"
        )
    return [(start, start + blocks) for start in range(1, num_blocks - blocks + 1)]


def resolve_blocks(cut: CutConfig, record: dict[str, Any]) -> int:
    """The number of blocks to remove: `blocks`, or the one whose share of the parameters is nearest to `ratio`."""
    if cut.blocks is not None:
        return cut.blocks
    mean = sum(record["block_parameters"]) / record["num_blocks"]
    wanted = cut.ratio * record["parameters"] / mean
    if wanted > record["num_blocks"] - 0.5:
        most = mean * (record["num_blocks"] - 1) / record["parameters"]
        raise ReplaceMeError(f"cut: ratio {cut.ratio} is out of reach; all blocks but one are {most:.3f} of the model")
    return max(1, round(wanted))


def sizes_of(cut: CutConfig, record: dict[str, Any]) -> list[int]:
    """The sizes of the runs that the choice of a cut section compares."""
    return sizes_needed(resolve_blocks(cut, record), cut.groups, cut.search)


def possible_spans(cut: CutConfig, record: dict[str, Any]) -> list[tuple[int, int]]:
    """All candidates of a cut section on a model; raises ReplaceMeError when its size, start or groups do not fit."""
    blocks = resolve_blocks(cut, record)
    possible = spans(record["num_blocks"], blocks)
    if cut.start is not None and (cut.start, cut.start + blocks) not in possible:
        last = possible[-1][0]
        raise ReplaceMeError(
            f"cut: start {cut.start} with {blocks} blocks does not fit; start {cut.start} must lie between 1 and {last}"
        )
    sizes = sizes_of(cut, record)
    check_room(record["num_blocks"], blocks, cut.groups, cut.search, cut.adjacency)
    return [span for size in sizes for span in spans(record["num_blocks"], size)]


def measure_candidates(
    model: "nn.Module", family: Family, tokens: Tokens, sizes: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    """Post-fit metrics of every candidate of some sizes: residual, residual_identity, cosine, cosine_after_fit."""
    from replaceme.capture import Wanted, capture
    from replaceme.gather import gather
    from replaceme.transforms import fit_least_squares

    candidates = [span for size in sizes for span in spans(len(family.block_modules(model)), size)]
    log.info(
        "statistics of %d candidates: %.1f GB", len(candidates), 16e-9 * len(candidates) * model.config.hidden_size**2
    )
    _check_enough(tokens.count, model.config.hidden_size)
    batches = tokens.batches(batch_size)
    every = frozenset(range(max(end for _, end in candidates)))
    wanted = Wanted(every, frozenset(start - 1 for start, _ in candidates))

    def passes(description: str):
        return capture(model, family, progress(batches, description, unit="batch"), wanted)

    statistics = gather(passes("statistics of all cuts"), candidates)
    fits = [fit_least_squares(one) for one in statistics]
    after = _mean_cosine_distances(passes("cosine after fit"), candidates, [one.matrix for one in fits])
    return [
        {
            "start": start,
            "end": end,
            "residual": one.report["residual"],
            "residual_identity": one.report["residual_identity"],
            "cosine_after_fit": fitted,
            "cosine": dropped,
        }
        for (start, end), one, (fitted, dropped) in zip(candidates, fits, after, strict=True)
    ]


def _check_enough(tokens: int, hidden_size: int) -> None:
    """With as many tokens as channels every candidate fits perfectly, and the choice would be among rounding errors."""
    if tokens <= hidden_size:
        raise ReplaceMeError(
            f"cut: {tokens} calibration tokens for a hidden size of {hidden_size}: every candidate would fit them "
            "perfectly; use more samples or longer text, or `metric: cosine`"
        )
    if tokens < ENOUGH * hidden_size:
        log.warning(
            "%d calibration tokens for a hidden size of %d: the fits of candidates are loose", tokens, hidden_size
        )


def _mean_cosine_distances(
    passes, candidates: list[tuple[int, int]], transforms: list["torch.Tensor"]
) -> list[tuple[float, float]]:
    """For each candidate the mean distance to the target state of Y + M T, and of the carrier's state as it is."""
    totals = [[0.0, 0.0] for _ in candidates]
    tokens = 0
    for activations in passes:
        tokens += int(activations.mask.sum())
        for total, (start, end), transform in zip(totals, candidates, transforms, strict=True):
            fitted, dropped = _cosine_distance_sums(activations, start, end, transform)
            total[0] += fitted
            total[1] += dropped
    return [(fitted / tokens, dropped / tokens) for fitted, dropped in totals]


def _cosine_distance_sums(
    activations: "Activations", start: int, end: int, transform: "torch.Tensor"
) -> tuple[float, float]:
    from torch.nn.functional import cosine_similarity

    mask = activations.mask
    state, goal, mlp_output = (
        x[mask].double()
        for x in (
            activations.hidden_states[start - 1],
            activations.hidden_states[end - 1],
            activations.mlp_output[start - 1],
        )
    )
    predicted = state + mlp_output @ transform.to(state.device) - mlp_output
    return (
        float((1 - cosine_similarity(predicted, goal, dim=-1)).sum()),
        float((1 - cosine_similarity(state, goal, dim=-1)).sum()),
    )


def choose(
    cut: CutConfig,
    record: dict[str, Any],
    distances: dict[str, "torch.Tensor"] | None = None,
    candidates: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The contents of cut.json: the groups [start, end) that go, the metric, and every candidate with its value.

    `distances` are needed for the metrics of pairs of states, `candidates` for the others, neither for a cut placed by
    hand. Of several groups `parts` are those compared, before any were merged.
    """
    possible = possible_spans(cut, record)
    blocks = resolve_blocks(cut, record)
    if cut.start is not None:
        metric, position, listed, parts = "given", None, [], [(cut.start, cut.start + blocks)]
    else:
        metric, position = cut.metric, cut.position
        if cut.post_fit:
            listed = _measured(candidates, possible, metric)
        else:
            listed = _by_distance(_matrix(distances, metric, position), possible, metric)
        parts = _search(cut, {(one["start"], one["end"]): one[metric] for one in listed}, record["num_blocks"], blocks)
    several = {"parts": [list(part) for part in parts], "search": cut.search, "adjacency": cut.adjacency}
    return {
        "groups": [list(group) for group in merged(parts)],
        "blocks": blocks,
        "num_blocks": record["num_blocks"],
        "metric": metric,
        "position": position,
        **(several if cut.groups > 1 else {}),
        "candidates": listed,
    }


def _search(cut: CutConfig, costs: Costs, num_blocks: int, blocks: int) -> list[Span]:
    if cut.search == "dynamic":
        return dynamic(costs, num_blocks, blocks, cut.groups, cut.adjacency)
    return greedy(costs, num_blocks, cut.groups, cut.adjacency)


def _measured(candidates: list[dict[str, Any]], possible: list[Span], metric: str) -> list[dict[str, Any]]:
    """Those of the measured candidates that a cut compares, in order."""
    known = {(one["start"], one["end"]): one for one in candidates if metric in one}
    missing = next((span for span in possible if span not in known), None)
    if missing is not None:
        start, end = missing
        raise ReplaceMeError(
            f"cut: the candidates measured are not those of {end - start} blocks: no {metric} of [{start}, {end}); "
            "measure them again"
        )
    return [known[span] for span in possible]


def _matrix(distances: dict[str, "torch.Tensor"], metric: str, position: str) -> "torch.Tensor":
    name = f"{metric}_{position}"
    if name not in distances:
        raise ReplaceMeError(
            f"cut: the distances hold no {metric}; measure them with `--representations`, cca with two calibration "
            "tokens or more for each channel"
        )
    return distances[name]


def _by_distance(matrix: "torch.Tensor", possible: list[Span], metric: str) -> list[dict[str, Any]]:
    return [{"start": start, "end": end, metric: float(matrix[start - 1, end - 1])} for start, end in possible]
