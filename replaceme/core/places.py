"""Places in the residual stream: k lies before block k, k + 0.5 between the attention and the MLP of block k.

A cut [start, end) removes what lies between two places. The state at a place p goes by the number p - 1: after block k
it is `hidden_states[k]`, in the middle of block k `hidden_states[k - 0.5]`.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil

Place = int | float
Span = tuple[Place, Place]
HALF = 0.5


def in_middle(place: Place) -> bool:
    """Return whether a place lies in the middle of a block."""
    return place % 1 != 0


def plain(place: Place) -> Place:
    """Return a place as it is written: 4 for 4.0, 4.5 for 4.5."""
    return int(place) if not in_middle(place) else place


def carrier_of(start: Place) -> int:
    """Return the block that writes to the stream last before a place, by its MLP or, in its middle, its attention."""
    return block_of(start - 1)


def block_of(state: Place) -> int:
    """Return the block that has a state at its end or in its middle."""
    return ceil(state)


def is_gone(place: Place, groups: Sequence[Span]) -> bool:
    """Return whether what comes after a place goes with the groups [start, end) of a cut."""
    return any(start <= place < end for start, end in groups)


def kept_halves(end: Place, groups: Sequence[Span]) -> list[tuple[int | None, int | None]]:
    """Return the blocks that the attention and the MLP of each block of a shortened model come from, up to a place of
    the original.

    An attention and an MLP make a block where no other half is left between them; None: the block lacks one.
    """
    found: list[tuple[int | None, int | None]] = []
    for number in range(int(end / HALF)):
        block, of_mlp = divmod(number, 2)
        if is_gone(number * HALF, groups):
            continue
        if not of_mlp:
            found.append((block, None))
        elif found and found[-1][1] is None:
            found[-1] = (found[-1][0], block)
        else:
            found.append((None, block))
    return found


@cache
def number_of(place: Place, groups: tuple[Span, ...]) -> int:
    """Return the number, in a shortened model, of the block that what comes after a place is in."""
    return len(kept_halves(place + HALF, groups)) - 1


def shown(groups: Sequence[Span]) -> str:
    """Return the groups of a cut as text, `[2, 5), [7.5, 10.5)`."""
    return ", ".join(f"[{start}, {end})" for start, end in groups)


def pairs_up(groups: Sequence[Span], num_blocks: int) -> bool:
    """Return whether each attention that stays has an MLP, and the other way round."""
    return not any(None in halves for halves in kept_halves(num_blocks, groups))


def amount(groups: Sequence[Span], num_blocks: int) -> str:
    """Return how much groups remove, `7 blocks`; `7 attentions and 3 MLPs` where what stays makes no whole blocks."""
    halves = [number % 2 for number in range(2 * num_blocks) if is_gone(number * HALF, groups)]
    if pairs_up(groups, num_blocks):
        counts = {"block": len(halves) // 2}
    else:
        counts = {"attention": halves.count(0), "MLP": halves.count(1)}
    return " and ".join(f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count)
