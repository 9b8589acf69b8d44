"""Row-wise dot = p.r, |p| and |r| for p = x T (+ y) and r = a - b + c, without storing p.

x [tokens, hidden] and t [hidden, other] are multiplied, and p [tokens, other] is reduced where it was made: it is never
written to memory. y and the terms a, b, c are [tokens, other]; r = a, a - b or a - b + c is formed in float32. With it
come the weights of the cosine fit of eq. 7 and 8 of arXiv 2505.02819: cos = dot / (|p| |r|), w = cos / |p|^2,
v = 1 / (|p| |r|).

Precision: one float32 accumulation over hidden, so errors of about 1e-5 of |p| |r|. With 16-bit x, a t of another dtype
is split into t_hi + t_lo of x's dtype, two passes into one accumulator: t is then off by 2^-17 (bfloat16) or 2^-22
(float16) relative, for twice the work; with float16, |t| must stay under 65504. float32 x is multiplied without tensor
cores (`input_precision="ieee"`), float64 goes through the torch reference.
Why it is fast: tensor cores, x and t shared in L2 by groups of tiles, and one read of every term. Hopper GPUs take
`row_cosine_hopper`. Columns are summed per tile and the tiles in a fixed order: the same inputs give the same bits.
"""

from types import ModuleType
from typing import NamedTuple

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the reference serves
    triton = None

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels.arguments import DTYPES, describe, hopper_path

REFERENCE_CHUNK_BYTES = 64 * 2**20  # of the float64 copy of one operand


class RowCosine(NamedTuple):
    """float32 [tokens] each; zeros where the mask is false."""

    dot: torch.Tensor
    norm_p: torch.Tensor
    norm_r: torch.Tensor


def row_cosine_reference(
    x: torch.Tensor,
    t: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    y: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> RowCosine:
    """Compute `row_cosine` in plain torch float64, rounded to float32 at the end."""
    _check(x, t, terms, y, mask)
    out = torch.zeros(3, x.shape[0], dtype=torch.float64, device=x.device)
    chunk = max(1, REFERENCE_CHUNK_BYTES // (8 * max(*t.shape, 1)))
    wide = t.double()
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        keep = slice(None) if mask is None else mask[rows]
        p = x[rows][keep].double() @ wide
        if y is not None:
            p += y[rows][keep].double()
        r = sum(sign * term[rows][keep].double() for sign, term in zip((1, -1, 1), terms, strict=False))
        out[:, rows][:, keep] = torch.stack([(p * r).sum(1), p.norm(dim=1), r.norm(dim=1)])
    return RowCosine(*out.float())


class Configuration(NamedTuple):
    """Tile of rows x columns, columns of x at a time, warps and pipeline stages of one launch."""

    rows: int
    columns: int
    block: int
    warps: int
    stages: int


HALF = Configuration(rows=128, columns=128, block=32, warps=8, stages=4)
NARROW = Configuration(rows=128, columns=64, block=32, warps=8, stages=4)  # float32 terms, more registers
IEEE = Configuration(rows=64, columns=64, block=32, warps=8, stages=2)  # float32 rows, no tensor cores
GROUP = 8  # tiles of rows that are walked together, so that what they read of t stays in L2


if triton is not None:

    @triton.jit
    def _row_cosine_kernel(
        x_ptr, t_ptr, a_ptr, b_ptr, c_ptr, y_ptr, mask_ptr, out_ptr,
        tokens, hidden, other, blocks, parts,
        x_row, x_column, t_part, t_row, t_column,
        a_row, a_column, b_row, b_column, c_row, c_column, y_row, y_column, mask_stride,
        TERMS: tl.constexpr, HAS_Y: tl.constexpr, HAS_MASK: tl.constexpr, WIDE: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
    ):  # fmt: skip
        row_tiles = tl.cdiv(tokens, ROWS)
        column_tiles = tl.cdiv(other, COLUMNS)
        group = tl.program_id(0) // (GROUP * column_tiles)
        within = tl.program_id(0) % (GROUP * column_tiles)
        height = tl.minimum(row_tiles - group * GROUP, GROUP)
        column_tile = within // height
        i = ((group * GROUP + within % height) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        j = (column_tile * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
        valid = i < tokens
        if HAS_MASK:
            valid = valid & (tl.load(mask_ptr + i * mask_stride, mask=valid, other=0) != 0)
        in_j = j < other
        p = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for step in range(blocks * parts):
            k = ((step % blocks) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
            in_k = k < hidden
            x = tl.load(
                x_ptr + i[:, None] * x_row + k[None, :] * x_column, mask=valid[:, None] & in_k[None, :], other=0.0
            )
            t = tl.load(
                t_ptr + (step // blocks).to(tl.int64) * t_part + k[:, None] * t_row + j[None, :] * t_column,
                mask=in_k[:, None] & in_j[None, :],
                other=0.0,
            )
            if WIDE:
                x = x.to(tl.float32)
                t = t.to(tl.float32)
            p = tl.dot(x, t, p, input_precision="ieee")

        inside = valid[:, None] & in_j[None, :]
        r = tl.load(a_ptr + i[:, None] * a_row + j[None, :] * a_column, mask=inside, other=0.0).to(tl.float32)
        if TERMS > 1:
            r -= tl.load(b_ptr + i[:, None] * b_row + j[None, :] * b_column, mask=inside, other=0.0).to(tl.float32)
        if TERMS > 2:
            r += tl.load(c_ptr + i[:, None] * c_row + j[None, :] * c_column, mask=inside, other=0.0).to(tl.float32)
        if HAS_Y:
            p += tl.load(y_ptr + i[:, None] * y_row + j[None, :] * y_column, mask=inside, other=0.0).to(tl.float32)
        target = out_ptr + column_tile.to(tl.int64) * 3 * tokens + i
        tl.store(target, tl.sum(p * r, 1), mask=i < tokens)
        tl.store(target + tokens, tl.sum(p * p, 1), mask=i < tokens)
        tl.store(target + tokens + tokens, tl.sum(r * r, 1), mask=i < tokens)


def row_cosine(
    x: torch.Tensor,
    t: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    y: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> RowCosine:
    """Compute `p.r`, `|p|` and `|r|` of every row, for p = x T + y and r = a, a - b or a - b + c (eq. 7, 8). 7, 8).

    x [tokens, hidden] and t [hidden, other] of any float dtype and strides; terms are one to three tensors [tokens,
    other] and y one of that shape or None, of any float dtypes; mask [tokens] bool. Three float32 [tokens]. Rows whose
    mask is false give 0, and NaN there is harmless. CUDA rows go through a kernel, CPU rows and float64 x, y or terms
    through `row_cosine_reference`. Raises ReplaceMeError on inconsistent shapes, dtypes or devices.
    """
    _check(x, t, terms, y, mask)
    rows = [x, *terms] + ([] if y is None else [y])
    if triton is None or not x.is_cuda or any(operand.dtype == torch.float64 for operand in rows):
        return row_cosine_reference(x, t, terms, y, mask)
    return _fused(x, t, terms, y, mask, hopper=True)


def row_cosine_triton(
    x: torch.Tensor,
    t: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    y: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
) -> RowCosine:
    """Compute `row_cosine` by the portable kernel on any device; CPU tensors need TRITON_INTERPRET=1."""
    _check(x, t, terms, y, mask)
    return _fused(x, t, terms, y, mask, hopper=False)


def _hopper() -> ModuleType:
    from replaceme.kernels import row_cosine_hopper

    return row_cosine_hopper


def _fused(
    x: torch.Tensor,
    t: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    y: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    hopper: bool,
) -> RowCosine:
    if x.shape[0] == 0 or t.shape[1] == 0:
        return RowCosine(*torch.zeros(3, x.shape[0], device=x.device))
    t = _parts(t, x.dtype)
    mask = None if mask is None else mask.view(torch.uint8)
    path = hopper_path(_hopper) if hopper else None
    if path is not None and path.usable(x, t, [*terms, *([] if y is None else [y])]):
        sums = path.partial_sums(x, t, terms, y, mask)
    else:
        sums = _partial_sums(x, t, terms, y, mask)
    dot, square_p, square_r = sums.sum(0)
    return RowCosine(dot, square_p.sqrt(), square_r.sqrt())


def _parts(t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return t as [parts, hidden, other] of `dtype`: itself, or high and low parts, padded so that TMA can read
    them.
    """
    if t.dtype == dtype:
        return t[None]
    if dtype == torch.float32:
        return t.float()[None]
    hidden, other = t.shape
    parts = torch.zeros(2, -(-hidden // 64) * 64, -(-other // 8) * 8, dtype=dtype, device=t.device)
    high, low = parts[:, :hidden, :other]
    high.copy_(t)
    low.copy_(t.to(torch.promote_types(t.dtype, torch.float32)) - high)
    return parts[:, :hidden, :other]


def _partial_sums(
    x: torch.Tensor, t: torch.Tensor, terms: tuple[torch.Tensor, ...], y: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute sums of p r, p p and r r over each tile's columns, float32 [column tiles, 3, tokens]."""
    (tokens, hidden), (parts, _, other) = x.shape, t.shape
    operands = [*terms, *[terms[0]] * (3 - len(terms)), terms[0] if y is None else y]
    configuration = NARROW if any(operand.dtype == torch.float32 for operand in operands) else HALF
    if x.dtype == torch.float32:
        configuration = IEEE
    column_tiles = triton.cdiv(other, configuration.columns)
    out = torch.empty(column_tiles, 3, tokens, dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device if x.is_cuda else -1):
        _row_cosine_kernel[(triton.cdiv(tokens, configuration.rows) * column_tiles,)](
            x,
            t,
            *operands,
            out if mask is None else mask,
            out,
            tokens,
            hidden,
            other,
            triton.cdiv(hidden, configuration.block),
            parts,
            *x.stride(),
            *t.stride(),
            *(stride for operand in operands for stride in operand.stride()),
            0 if mask is None else mask.stride(0),
            TERMS=len(terms),
            HAS_Y=y is not None,
            HAS_MASK=mask is not None,
            # the interpreter stores bfloat16 as raw uint16 and multiplies those, so it gets widened operands
            WIDE=not x.is_cuda and x.dtype == torch.bfloat16,
            ROWS=configuration.rows,
            COLUMNS=configuration.columns,
            BLOCK=configuration.block,
            GROUP=GROUP,
            num_warps=configuration.warps,
            num_stages=configuration.stages,
        )
    return out


def _check(
    x: torch.Tensor, t: torch.Tensor, terms: tuple[torch.Tensor, ...], y: torch.Tensor | None, mask: torch.Tensor | None
) -> None:
    for name, matrix in (("x", x), ("t", t)):
        if matrix.ndim != 2 or matrix.dtype not in DTYPES:
            raise ReplaceMeError(f"row_cosine: {name} must be a matrix of floats, got {describe(matrix)}")
    if x.shape[1] != t.shape[0]:
        raise ReplaceMeError(f"row_cosine: x has {x.shape[1]} columns, t {t.shape[0]} rows; they must agree")
    if not isinstance(terms, tuple | list) or not 1 <= len(terms) <= 3:
        found = len(terms) if isinstance(terms, tuple | list) else type(terms).__name__
        raise ReplaceMeError(f"row_cosine: terms must be a tuple of one to three tensors, got {found}")
    shape = (x.shape[0], t.shape[1])
    rows = {f"terms[{k}]": term for k, term in enumerate(terms)} | ({} if y is None else {"y": y})
    for name, operand in rows.items():
        if operand.shape != shape or operand.dtype not in DTYPES:
            raise ReplaceMeError(f"row_cosine: {name} must be floats {list(shape)}, got {describe(operand)}")
    if mask is not None and (mask.shape != x.shape[:1] or mask.dtype != torch.bool):
        raise ReplaceMeError(f"row_cosine: mask must be {x.shape[0]} bools, got {describe(mask)}")
    for name, operand in {"t": t, **rows, "mask": x if mask is None else mask}.items():
        if operand.device != x.device:
            raise ReplaceMeError(f"row_cosine: {name} is on {operand.device}, x on {x.device}")
