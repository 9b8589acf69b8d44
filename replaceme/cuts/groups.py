"""Split the blocks to remove into several runs: greedy (the paper), the best of all (dynamic), or independent.

All minimise the sum of the metric over runs [start, end) with start >= 1, so that each has a carrier before it. Under
`adjacency: separate` (Multi_LT_NC of the paper) a block is kept between any two; under `merge` (Multi_LT) runs may
touch, and those that do become one, with one transform. Runs may begin in the middle of blocks. `independent`
(ShortGPT, arXiv 2403.03853) takes single blocks, as many as the metric says are the least, however many groups they
make. `iterative` (SLEB, arXiv 2402.09025) takes them one after another, each measured without those that went before it
(`without_fit`).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

from replaceme.config.cuts import SINGLE
from replaceme.core.errors import ReplaceMeError
from replaceme.core.places import HALF, Place, Span, in_middle, plain

Costs = Mapping[Span, float]


def sizes_needed(blocks: int, groups: int, search: str) -> list[int]:
    """Return the sizes of the runs that a search compares; raises ReplaceMeError where a greedy one cannot split
    evenly.
    """
    if search in SINGLE:
        return [1]
    if groups == 1:
        return [blocks]
    if search == "dynamic":
        return list(range(1, blocks + 1))
    if blocks % groups:
        raise ReplaceMeError(
            f"cut: {blocks} blocks do not split into {groups} groups of one size; take a multiple, or `search: dynamic`"
        )
    return [blocks // groups]


def check_room(num_blocks: int, blocks: int, groups: int, search: str, adjacency: str) -> None:
    """Raise ReplaceMeError where a greedy search cannot place its groups, whatever the costs."""
    if search == "greedy" and _room([], num_blocks, sizes_needed(blocks, groups, search)[0], adjacency) < groups:
        raise ReplaceMeError(
            f"cut: {groups} groups of {blocks // groups} of {num_blocks} blocks leave no block between them; "
            "remove fewer, or `adjacency: merge`"
        )


def greedy(costs: Costs, num_blocks: int, groups: int, adjacency: str) -> list[Span]:
    """Return `groups` runs of one size: the cheapest first, then the next that overlaps (or touches) none, and so on.

    A run that would leave no room for the rest is passed over. Ties go to the lower start.
    """
    chosen: list[Span] = []
    for span in sorted(costs, key=lambda one: (costs[one], one)):
        size, left = span[1] - span[0], groups - len(chosen) - 1
        if (
            left >= 0
            and _apart(span, chosen, adjacency)
            and _room([*chosen, span], num_blocks, size, adjacency) >= left
        ):
            chosen.append(span)
    if len(chosen) < groups:
        raise ReplaceMeError(f"cut: {num_blocks} blocks have no room for {groups} groups; remove fewer")
    return sorted(chosen)


def dynamic(costs: Costs, num_blocks: int, blocks: int, groups: int, adjacency: str) -> list[Span]:
    """Return the at most `groups` runs of any sizes, `blocks` in all, whose costs have the least sum.

    `best(p, g, b) = min(best(p + 1, g, b), min_s cost[p, p + s) + best(p + s (+ 1 if separate), g - 1, b - s))`, in
    num_blocks * groups * blocks states; p goes by halves where runs do. Ties go to the lower starts. Raises
    ReplaceMeError where no runs with a cost make up so many blocks.
    """
    gap = int(adjacency == "separate")
    first_start = min((start for start, _ in costs), default=1)
    step = HALF if in_middle(first_start) else 1

    @cache
    def best(first: Place, runs: int, left: int) -> tuple[float, tuple[Span, ...]]:
        if left == 0:
            return 0.0, ()
        if runs == 0 or first + left > num_blocks:
            return float("inf"), ()
        found = [best(first + step, runs, left)]
        for size in range(1, left + 1):
            span = (plain(first), plain(first + size))
            rest, after = best(first + size + gap, runs - 1, left - size)
            found.append((costs.get(span, float("inf")) + rest, (span, *after)))
        return min(found)

    least_sum, chosen = best(first_start, groups, blocks)
    if least_sum == float("inf"):
        raise ReplaceMeError(f"cut: no {groups} groups of {blocks} blocks among the candidates; remove fewer")
    return list(chosen)


def independent(costs: Costs, blocks: int) -> list[Span]:
    """Return the `blocks` single blocks of least cost, in order. Ties go to the lower start."""
    return sorted(sorted(costs, key=lambda one: (costs[one], one))[:blocks])


def least(costs: Costs) -> Span:
    """Return the run of least cost. Ties go to the lower start."""
    return min(costs, key=lambda one: (costs[one], one))


def merged(chosen: Sequence[Span]) -> list[Span]:
    """Return sorted runs, with runs that touch joined."""
    found: list[Span] = []
    for start, end in sorted(chosen):
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _apart(span: Span, chosen: Sequence[Span], adjacency: str) -> bool:
    gap = int(adjacency == "separate")
    return all(span[1] + gap <= start or end + gap <= span[0] for start, end in chosen)


def _room(chosen: Sequence[Span], num_blocks: int, size: int, adjacency: str) -> int:
    """Return how many more runs of a size fit between the chosen ones, block 0 kept."""
    gap = int(adjacency == "separate")
    edges = [(1 - gap, 1 - gap), *sorted(chosen), (num_blocks + gap, num_blocks + gap)]
    free = [(end + gap, start - gap) for (_, end), (start, _) in pairwise(edges)]
    return sum(int((max(0, last - first) + gap) // (size + gap)) for first, last in free)
