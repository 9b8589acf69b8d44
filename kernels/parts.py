"""Prepare rows for tensor cores: `v_k (a_k - b_k + c_k)` of the kept rows, split into 16-bit parts, and their sums.

A row r is formed in float32 and split as `r = p_0 + p_1 + p_2 + e`, each p the rounding of what is left to the dtype
of the parts: three bfloat16 parts leave |e| <= 2^-26 |r|, so products of parts, exact in float32, are products of
float32 rows. In the same pass: `sum_k w_k r_k`, `sum_k w_k |r_k|^2` and `sum_k w_k t_k` of one chosen term t.
Why a pass of its own: formed inside the matrix product, a, b and c would be read again for every tile of 128 columns;
at 65,536 x 4096 that is 42 GB through the L2, more than it delivers in the time of the product (docs/kernels.md).
"""

from dataclasses import dataclass

import torch

from replaceme.kernels.arguments import dependent_launch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the references serve
    triton = None

TOTAL_BLOCKS, TOTAL_COLUMNS = 32, 32  # of a program that adds up the programs' sums
ALIGNMENT = 128  # rows of a part and of one float32 run: a part ends in zero rows
BLOCK_ROWS, BLOCK_COLUMNS, STEPS, WARPS = 16, 128, 32, 4  # of a program: STEPS blocks of rows, one under the other
PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}  # bfloat16 parts that hold a value of this dtype


@dataclass(frozen=True)
class Operand:
    """One side of a matrix product: `parts` parts of `rows` rows each, stacked in matrix [parts * stride, columns]."""

    matrix: torch.Tensor
    rows: int
    parts: int
    stride: int  # rows from one part to the next
    columns: int


@dataclass(frozen=True)
class Wanted:
    """The parts that one pass over the rows of the terms has to produce."""

    parts: int  # 0: the sums alone
    dtype: torch.dtype
    rounded: torch.dtype | None = None  # r is rounded to this dtype first, for the sums as well


@dataclass(frozen=True)
class Totals:
    """Contiguous float64 sums that a pass adds to: sum_r [columns] with energy [], sum_term [columns] of one term."""

    sum_r: torch.Tensor | None = None
    energy: torch.Tensor | None = None
    sum_term: torch.Tensor | None = None
    term: int = 0


if triton is not None:

    @triton.jit
    def _form_kernel(
        a_ptr,
        b_ptr,
        c_ptr,
        kept_ptr,
        scale_ptr,
        weights_ptr,
        parts_ptr,
        sums_ptr,
        rows,
        columns,
        part_stride,
        row_stride,
        a_row,
        a_column,
        b_row,
        b_column,
        c_row,
        c_column,
        TERMS: tl.constexpr,
        HAS_KEPT: tl.constexpr,
        HAS_SCALE: tl.constexpr,
        HAS_WEIGHTS: tl.constexpr,
        PARTS: tl.constexpr,
        ROUND_TO: tl.constexpr,
        SUM_R: tl.constexpr,
        SUM_TERM: tl.constexpr,
        PART_DTYPE: tl.constexpr,
        STEPS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        PDL: tl.constexpr,
    ):
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        j = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
        in_j = j < columns
        # float32 over the few rows of one program, element by element, and float64 from there on
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        term_total = tl.zeros((ROWS, COLUMNS), tl.float32)
        energy = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(STEPS):
            k = (tl.program_id(0).to(tl.int64) * STEPS + step) * ROWS + tl.arange(0, ROWS)
            in_k = k < rows
            source = k
            if HAS_KEPT:
                source = tl.load(kept_ptr + k, mask=in_k, other=0)
            inside = in_k[:, None] & in_j[None, :]
            a = tl.load(a_ptr + source[:, None] * a_row + j[None, :] * a_column, mask=inside, other=0.0)
            r = a.to(tl.float32)
            term = r
            if TERMS > 1:
                b = tl.load(b_ptr + source[:, None] * b_row + j[None, :] * b_column, mask=inside, other=0.0)
                r = r - b.to(tl.float32)
                if SUM_TERM == 1:
                    term = b.to(tl.float32)
            if TERMS > 2:
                c = tl.load(c_ptr + source[:, None] * c_row + j[None, :] * c_column, mask=inside, other=0.0)
                r = r + c.to(tl.float32)
                if SUM_TERM == 2:
                    term = c.to(tl.float32)
            if ROUND_TO is not None:
                r = r.to(ROUND_TO).to(tl.float32)
            left = r
            if HAS_SCALE:
                left = r * tl.load(scale_ptr + source, mask=in_k, other=0.0)[:, None]
            for part in tl.static_range(PARTS):
                rounded = left.to(PART_DTYPE)
                stored = (k + part * part_stride)[:, None] * row_stride + j[None, :]
                tl.store(parts_ptr + stored, rounded, mask=(k < part_stride)[:, None] & in_j[None, :])
                left = left - rounded.to(tl.float32)
            weights = 1.0
            if HAS_WEIGHTS:
                weights = tl.load(weights_ptr + source, mask=in_k, other=0.0)[:, None]
            if SUM_R:
                total += r * weights
                energy += r * weights * r
            if SUM_TERM >= 0:
                term_total += term * weights
        # of this program: sum_r, sum_term, and, behind those of all programs, the energy
        own = sums_ptr + tl.program_id(0).to(tl.int64) * columns + j
        kind = tl.num_programs(0).to(tl.int64) * columns
        if SUM_R:
            tl.store(own, tl.sum(total.to(tl.float64), axis=0), mask=in_j)
            place = tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
            tl.store(sums_ptr + 2 * kind + place, tl.sum(energy.to(tl.float64)))
        if SUM_TERM >= 0:
            tl.store(own + kind, tl.sum(term_total.to(tl.float64), axis=0), mask=in_j)

    @triton.jit
    def _add_totals_kernel(
        sums_ptr,
        sum_r_ptr,
        energy_ptr,
        sum_term_ptr,
        blocks,
        columns,
        energies,
        SUM_R: tl.constexpr,
        SUM_TERM: tl.constexpr,
        BLOCKS: tl.constexpr,
        COLUMNS: tl.constexpr,
        PDL: tl.constexpr,
    ):
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        first_column = tl.program_id(0) * COLUMNS
        if first_column < columns:
            if SUM_R:
                _add_columns(sums_ptr, sum_r_ptr, blocks, columns, first_column, BLOCKS, COLUMNS)
            if SUM_TERM:
                sums_ptr += blocks * columns
                _add_columns(sums_ptr, sum_term_ptr, blocks, columns, first_column, BLOCKS, COLUMNS)
        elif SUM_R:  # the last program
            total = tl.zeros((BLOCKS * COLUMNS,), tl.float64)
            for first in range(0, energies, BLOCKS * COLUMNS):
                place = first + tl.arange(0, BLOCKS * COLUMNS)
                total += tl.load(sums_ptr + 2 * blocks * columns + place, mask=place < energies, other=0.0)
            tl.store(energy_ptr, tl.load(energy_ptr) + tl.sum(total))

    @triton.jit
    def _add_columns(
        sums_ptr, out_ptr, blocks, columns, first_column, BLOCKS: tl.constexpr, COLUMNS: tl.constexpr
    ):  # fmt: skip
        """Add the blocks' sums of some columns, in order, into float64 `out`."""
        j = first_column + tl.arange(0, COLUMNS)
        total = tl.zeros((BLOCKS, COLUMNS), tl.float64)
        for first in range(0, blocks, BLOCKS):
            block = first + tl.arange(0, BLOCKS)
            inside = (block < blocks)[:, None] & (j < columns)[None, :]
            total += tl.load(sums_ptr + block[:, None] * columns + j[None, :], mask=inside, other=0.0)
        before = tl.load(out_ptr + j, mask=j < columns, other=0.0)
        tl.store(out_ptr + j, before + tl.sum(total, axis=0), mask=j < columns)


@dataclass(frozen=True)
class Rows:
    """The rows that count, and their weights: kept [n] int64 row numbers (None: all), float32 scale and weights
    [tokens].
    """

    kept: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    weights: torch.Tensor | None = None


def form(terms: tuple[torch.Tensor, ...], rows: Rows, wanted: Wanted, totals: Totals | None = None) -> Operand | None:
    """Form `scale_k (a_k - b_k + c_k)` of the kept rows, split it into parts, and add its weighted sums into `totals`.

    terms: one to three float tensors [tokens, columns] of any strides. Parts are [parts * stride, columns] in
    `wanted.dtype` with 16-byte aligned rows, None when no parts are wanted; sums are float64 and deterministic. Needs a
    GPU, or TRITON_INTERPRET=1.
    """
    first = terms[0]
    count = first.shape[0] if rows.kept is None else rows.kept.shape[0]
    columns, device = first.shape[1], first.device
    stride = -(-count // ALIGNMENT) * ALIGNMENT
    leading = -(-columns // 8) * 8
    parts = torch.empty(wanted.parts * stride, leading, dtype=wanted.dtype, device=device)
    operand = Operand(parts, count, wanted.parts, stride, columns) if wanted.parts else None
    grid = (triton.cdiv(stride, BLOCK_ROWS * STEPS), triton.cdiv(columns, BLOCK_COLUMNS))
    if 0 in grid:
        return operand
    totals = totals or Totals()
    sums = torch.empty(2 * grid[0] * columns + grid[0] * grid[1], dtype=torch.float64, device=device)
    a, b, c = (*terms, first, first)[:3]
    with torch.cuda.device(device if first.is_cuda else -1):
        _form_kernel[grid](
            a,
            b,
            c,
            _or(rows.kept, sums),
            _or(rows.scale, sums),
            _or(rows.weights, sums),
            parts,
            sums,
            count,
            columns,
            stride,
            leading,
            *a.stride(),
            *b.stride(),
            *c.stride(),
            TERMS=len(terms),
            HAS_KEPT=rows.kept is not None,
            HAS_SCALE=rows.scale is not None,
            HAS_WEIGHTS=rows.weights is not None,
            PARTS=wanted.parts,
            ROUND_TO=None if wanted.rounded is None else _triton(wanted.rounded),
            SUM_R=totals.sum_r is not None,
            SUM_TERM=-1 if totals.sum_term is None else totals.term,
            PART_DTYPE=_triton(wanted.dtype),
            STEPS=STEPS,
            ROWS=BLOCK_ROWS,
            COLUMNS=BLOCK_COLUMNS,
            num_warps=WARPS,
            **dependent_launch(device),
        )
        if totals.sum_r is not None or totals.sum_term is not None:
            _add_totals(sums, totals, grid, columns)
    return operand


def _add_totals(sums: torch.Tensor, totals: Totals, grid: tuple[int, int], columns: int) -> None:
    """Add the programs' sums, in one order, into the totals."""
    _add_totals_kernel[(triton.cdiv(columns, TOTAL_COLUMNS) + 1,)](
        sums,
        _or(totals.sum_r, sums),
        _or(totals.energy, sums),
        _or(totals.sum_term, sums),
        grid[0],
        columns,
        grid[0] * grid[1],
        SUM_R=totals.sum_r is not None,
        SUM_TERM=totals.sum_term is not None,
        BLOCKS=TOTAL_BLOCKS,
        COLUMNS=TOTAL_COLUMNS,
        num_warps=4,
        **dependent_launch(sums.device),
    )


def _triton(dtype: torch.dtype):
    return getattr(tl, str(dtype).removeprefix("torch."))


def as_operand(x: torch.Tensor) -> Operand | None:
    """Return x itself as an operand where its layout allows (16-bit, unit column stride, 16-byte aligned rows), else
    None.
    """
    aligned = x.stride(1) == 1 and x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    if x.element_size() != 2 or not aligned or x.stride(0) < x.shape[1]:
        return None
    return Operand(x, x.shape[0], 1, x.shape[0], x.shape[1])


def pairs(left: Operand, right: Operand) -> tuple[tuple[int, int], ...]:
    """Return the pairs of parts whose products matter, smallest first: part p is 2^-8p of the whole, and 2^-24 does not
    matter.
    """
    found = [(p, q) for p in range(left.parts) for q in range(right.parts) if p + q < 3]
    return tuple(sorted(found, key=sum, reverse=True))


def _or(tensor: torch.Tensor | None, other: torch.Tensor) -> torch.Tensor:
    return other if tensor is None else tensor
