"""Mean lengths |h_i - h_j| of the differences of all pairs of L states in one launch, float64 [L, L].

h_k [tokens, hidden] as for `pairwise_cosine`, whose masks and exactness of equal states it shares. The differences are
formed before they are squared: products would cancel where neighbours hardly differ. Squares are added in float32, each
of eight sums over an eighth of the columns, lengths over tokens in float64: within 1e-6 of their size.
A program owns a run of tokens and a tile of pairs, and reads the rows of both sides once: no difference is stored.
"""

from dataclasses import dataclass

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the reference serves
    triton = None

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.arguments import describe
from replaceme.kernels.states import Hidden, checked, places, unit_columns


@dataclass(frozen=True)
class Configuration:
    """States on each side of a tile, columns at once, warps of one launch, and the most runs of tokens."""

    tile: int = 16
    block_columns: int = 8
    warps: int = 1
    runs: int = 1024


CONFIGURATION = Configuration()


def pairwise_l2_reference(hidden: Hidden, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `pairwise_l2` in plain torch float64, one pair at a time."""
    states = checked("pairwise_l2", hidden, mask)
    wide = [(state if mask is None else state[mask]).double() for state in states]
    sums = torch.zeros(len(states), len(states), dtype=torch.float64, device=states[0].device)
    for i, one in enumerate(wide):
        for j in range(i):
            sums[i, j] = (one - wide[j]).norm(dim=1).sum()
    return _means(sums, len(states[0]), mask)


if triton is not None:

    @triton.jit
    def _pairwise_l2_kernel(
        first_ptr,
        table_ptr,
        mask_ptr,
        sums_ptr,
        states,
        tokens,
        tokens_each,
        columns_in_units,
        mask_stride,
        UNIT: tl.constexpr,
        HAS_MASK: tl.constexpr,
        TILE: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
    ):
        start = tl.program_id(0).to(tl.int64) * tokens_each
        columns = columns_in_units * UNIT  # so that the compiler sees how wide the loads may be
        # the tile of pairs: numbers count the tiles of the lower triangle row by row
        number = tl.program_id(1)
        row = 0
        while (row + 1) * (row + 2) // 2 <= number:
            row += 1
        i = row * TILE + tl.arange(0, TILE)
        j = (number - row * (row + 1) // 2) * TILE + tl.arange(0, TILE)
        in_i, in_j = i < states, j < states
        place_i = tl.load(table_ptr + i, mask=in_i, other=0)
        place_j = tl.load(table_ptr + j, mask=in_j, other=0)
        stride_i = tl.load(table_ptr + states + i, mask=in_i, other=0)
        stride_j = tl.load(table_ptr + states + j, mask=in_j, other=0)
        lengths = tl.zeros((TILE, TILE), dtype=tl.float64)
        for step in range(tl.minimum(tokens_each, tokens - start)):
            token = start + step
            keep = True
            if HAS_MASK:
                keep = tl.load(mask_ptr + token * mask_stride) != 0
            if keep:
                rows_i = first_ptr + (place_i + token * stride_i)[:, None] * UNIT
                rows_j = first_ptr + (place_j + token * stride_j)[:, None] * UNIT
                squares = tl.zeros((TILE, TILE, BLOCK_COLUMNS), dtype=tl.float32)
                for column in range(0, columns, BLOCK_COLUMNS):
                    k = column + tl.arange(0, BLOCK_COLUMNS)
                    inside = (k < columns)[None, :]
                    x = tl.load(rows_i + k[None, :], mask=in_i[:, None] & inside, other=0.0).to(tl.float32)
                    y = tl.load(rows_j + k[None, :], mask=in_j[:, None] & inside, other=0.0).to(tl.float32)
                    difference = x[:, None, :] - y[None, :, :]
                    squares += difference * difference
                lengths += tl.sqrt(tl.sum(squares, 2)).to(tl.float64)
        at = sums_ptr + tl.program_id(0).to(tl.int64) * states * states + i[:, None] * states + j[None, :]
        tl.store(at, lengths, mask=in_i[:, None] & in_j[None, :])


def pairwise_l2(hidden: Hidden, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the means over tokens of |h_i - h_j|, float64 [L, L]: symmetric, the diagonal 0, all 0 when no token is
    left.

    Arguments and errors as in `pairwise_cosine`. CUDA states of at most 32 bits go through Triton, all others through
    `pairwise_l2_reference`.
    """
    states = checked("pairwise_l2", hidden, mask)
    if triton is not None and states[0].is_cuda and states[0].dtype != torch.float64:
        return _launch(states, mask)
    return pairwise_l2_reference(states, mask)


def pairwise_l2_triton(hidden: Hidden, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute `pairwise_l2` by the Triton kernel on any device; CPU tensors need TRITON_INTERPRET=1."""
    states = checked("pairwise_l2", hidden, mask)
    if states[0].dtype == torch.float64:
        raise ReplaceMeError(f"pairwise_l2: the kernel takes states of at most 32 bits, got {describe(states[0])}")
    return _launch(states, mask)


def _launch(states: list[torch.Tensor], mask: torch.Tensor | None) -> torch.Tensor:
    states = unit_columns(states)
    if not states[0].is_cuda and states[0].dtype == torch.bfloat16:
        states = [state.float() for state in states]  # the interpreter stores bfloat16 as raw uint16
    first, count = states[0], len(states)
    tokens, columns = first.shape
    tokens_each = max(1, triton.cdiv(tokens, CONFIGURATION.runs))
    runs = triton.cdiv(tokens, tokens_each)
    sums = torch.zeros(runs, count, count, dtype=torch.float64, device=first.device)
    if tokens:
        table, unit = places(states)
        flags = sums if mask is None else mask.view(torch.uint8)
        rows = triton.cdiv(count, CONFIGURATION.tile)
        with torch.cuda.device(first.device if first.is_cuda else -1):
            _pairwise_l2_kernel[(runs, rows * (rows + 1) // 2)](
                first,
                table,
                flags,
                sums,
                count,
                tokens,
                tokens_each,
                columns // unit,
                flags.stride(0),
                UNIT=unit,
                HAS_MASK=mask is not None,
                TILE=CONFIGURATION.tile,
                BLOCK_COLUMNS=CONFIGURATION.block_columns,
                num_warps=CONFIGURATION.warps,
            )
    return _means(sums.sum(0), tokens, mask)


def _means(sums: torch.Tensor, tokens: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Divide sums [L, L], of which the lower triangle counts, by the number of kept tokens, and make them symmetric."""
    lower = sums.tril(-1)
    return (lower + lower.mT) / (max(tokens, 1) if mask is None else mask.sum().clamp(min=1))
