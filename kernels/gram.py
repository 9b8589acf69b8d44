"""Gram matrices of rows, accumulated in float64: `gram = sum_k w_k x_k x_k^T` and `cross = sum_k w_k x_k y_k^T`.

x [tokens, hidden] and y [tokens, other] are bfloat16, float16 or float32 (float64 goes through the torch reference),
of any strides; w [tokens] are optional row weights; rows whose mask is false are never read, so NaN there is harmless.
The result is float64 and within 1e-6 (relative Frobenius) of the float64 computation. Source: the normal equations of
eq. 6 of arXiv 2505.02819.

Why it is exact: products of bf16 or fp16 values are exact in float32, and what is lost is lost in long float32 sums. So
a tile multiplies short runs of at most `block_rows` rows and adds each run into float64 registers. Weighted rows, fp32
rows and operands of two dtypes are multiplied in float32 without tensor cores (`input_precision="ieee"`): the weight is
rounded to float32 and so is its product with one operand.
Why it is fast: tensor cores for 16-bit rows, the lower tiles only, mirrored on the way out. Every tile belongs to one
program and sums in a fixed order, without atomics: the same inputs give the same bits.
"""

from dataclasses import dataclass

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the reference serves
    triton = None

from replaceme.errors import ReplaceMeError

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
REFERENCE_CHUNK_BYTES = 64 * 2**20  # of the float64 copy of one operand


def gram_reference(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sum_k w_k x_k x_k^T` in plain torch float64; arguments and result as in `gram`."""
    out = _check(x, x, weights, mask, out)
    total = _sum_of_products(x, x, weights, mask)
    lower = total.tril()  # a product's two triangles may differ in the last bit
    return out.add_(lower).add_(lower.tril(-1).mT)


def cross_reference(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sum_k w_k x_k y_k^T` in plain torch float64; arguments and result as in `cross`."""
    out = _check(x, y, weights, mask, out)
    return out.add_(_sum_of_products(x, y, weights, mask))


def _sum_of_products(
    x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    total = torch.zeros(x.shape[1], y.shape[1], dtype=torch.float64, device=x.device)
    chunk = max(1, REFERENCE_CHUNK_BYTES // (8 * max(x.shape[1], y.shape[1], 1)))
    for start in range(0, x.shape[0], chunk):
        rows = slice(start, start + chunk)
        keep = slice(None) if mask is None else mask[rows]
        left = x[rows][keep].double()
        right = left if y is x else y[rows][keep].double()
        if weights is not None:
            left = left * weights[rows][keep].double()[:, None]
        total.addmm_(left.T, right)
    return total


@dataclass(frozen=True)
class Configuration:
    """Tile edge, rows of one float32 run, warps and pipeline stages of one launch."""

    tile: int
    block_rows: int
    warps: int
    stages: int


SMALL = Configuration(tile=64, block_rows=64, warps=4, stages=3)
LARGE = Configuration(tile=128, block_rows=64, warps=8, stages=3)
IEEE = Configuration(tile=64, block_rows=32, warps=4, stages=2)  # float32 operands, no tensor cores
LARGE_FROM = 2048  # columns from which 128-wide tiles fill the device


def _configuration(columns: int, wide: bool) -> Configuration:
    if wide:
        return IEEE
    return LARGE if columns >= LARGE_FROM else SMALL


if triton is not None:

    @triton.jit
    def _products_kernel(
        x_ptr,
        y_ptr,
        weights_ptr,
        mask_ptr,
        out_ptr,
        tokens,
        x_columns,
        y_columns,
        x_stride_row,
        x_stride_column,
        y_stride_row,
        y_stride_column,
        weights_stride,
        mask_stride,
        out_stride_row,
        out_stride_column,
        SYMMETRIC: tl.constexpr,
        HAS_WEIGHTS: tl.constexpr,
        HAS_MASK: tl.constexpr,
        WIDE: tl.constexpr,
        TILE: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
    ):
        tile_i = tl.program_id(0)
        tile_j = tl.program_id(1)
        if SYMMETRIC:  # noqa: SIM102 (a compile-time branch around a run-time one)
            if tile_j > tile_i:  # its mirror image writes it
                return
        i = (tile_i * TILE + tl.arange(0, TILE)).to(tl.int64)
        j = (tile_j * TILE + tl.arange(0, TILE)).to(tl.int64)
        in_i = i < x_columns
        in_j = j < y_columns
        total = tl.zeros((TILE, TILE), dtype=tl.float64)
        for start in range(0, tokens, BLOCK_ROWS):
            k = (start + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
            in_k = k < tokens
            if HAS_MASK:
                in_k = in_k & (tl.load(mask_ptr + k * mask_stride, mask=in_k, other=0) != 0)
            x = tl.load(
                x_ptr + k[:, None] * x_stride_row + i[None, :] * x_stride_column,
                mask=in_k[:, None] & in_i[None, :],
                other=0.0,
            )
            y = tl.load(
                y_ptr + k[:, None] * y_stride_row + j[None, :] * y_stride_column,
                mask=in_k[:, None] & in_j[None, :],
                other=0.0,
            )
            if WIDE:
                x = x.to(tl.float32)
                y = y.to(tl.float32)
            if HAS_WEIGHTS:
                weights = tl.load(weights_ptr + k * weights_stride, mask=in_k, other=0.0)
                x = x * weights[:, None]
            run = tl.dot(tl.trans(x), y, input_precision="ieee", out_dtype=tl.float32)
            total += run.to(tl.float64)

        inside = in_i[:, None] & in_j[None, :]
        if SYMMETRIC:
            inside = inside & (i[:, None] >= j[None, :])
            above = inside & (i[:, None] > j[None, :])
            mirrored = out_ptr + j[None, :] * out_stride_row + i[:, None] * out_stride_column
            tl.store(mirrored, tl.load(mirrored, mask=above, other=0.0) + total, mask=above)
        own = out_ptr + i[:, None] * out_stride_row + j[None, :] * out_stride_column
        tl.store(own, tl.load(own, mask=inside, other=0.0) + total, mask=inside)


def gram(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gram matrix of rows, `sum_k w_k x_k x_k^T` over the rows whose mask is true.

    x [tokens, hidden], any float dtype and strides; weights [tokens], any float dtype, ones when None; mask [tokens]
    bool; the result is float64 [hidden, hidden], exactly symmetric. With `out` (float64) it is added into `out` in
    place. CUDA rows go through Triton, CPU rows and float64 through `gram_reference`. Raises ReplaceMeError on
    inconsistent shapes, dtypes or devices.
    """
    if _wants_triton(x, x):
        return gram_triton(x, weights, mask, out)
    return gram_reference(x, weights, mask, out)


def cross(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-product of rows, `sum_k w_k x_k y_k^T` over the rows whose mask is true.

    x [tokens, hidden] and y [tokens, other]; the rest as in `gram`; the result is float64 [hidden, other].
    """
    if _wants_triton(x, y):
        return cross_triton(x, y, weights, mask, out)
    return cross_reference(x, y, weights, mask, out)


def gram_triton(
    x: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`gram` by the Triton kernel whatever the device; on CPU tensors this needs TRITON_INTERPRET=1."""
    return _launch(x, x, weights, mask, _check(x, x, weights, mask, out), symmetric=True)


def cross_triton(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cross` by the Triton kernel whatever the device; on CPU tensors this needs TRITON_INTERPRET=1."""
    return _launch(x, y, weights, mask, _check(x, y, weights, mask, out), symmetric=False)


def _wants_triton(x: torch.Tensor, y: torch.Tensor) -> bool:
    return triton is not None and x.is_cuda and torch.float64 not in (x.dtype, y.dtype)


def _launch(
    x: torch.Tensor,
    y: torch.Tensor,
    weights: torch.Tensor | None,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    *,
    symmetric: bool,
) -> torch.Tensor:
    if x.shape[0] == 0 or out.numel() == 0:
        return out
    interpreted = not x.is_cuda
    # the interpreter stores bfloat16 as raw uint16 and multiplies those, so it gets widened operands
    half = x.dtype == y.dtype and x.dtype != torch.float32 and not (interpreted and x.dtype == torch.bfloat16)
    wide = weights is not None or not half
    configuration = _configuration(max(out.shape), wide)
    weights = out if weights is None else weights.to(torch.float32)
    mask = out if mask is None else mask.view(torch.uint8)
    tile = configuration.tile
    grid = (triton.cdiv(out.shape[0], tile), triton.cdiv(out.shape[1], tile))
    with torch.cuda.device(-1 if interpreted else x.device):
        _products_kernel[grid](
            x,
            y,
            weights,
            mask,
            out,
            x.shape[0],
            out.shape[0],
            out.shape[1],
            *x.stride(),
            *y.stride(),
            weights.stride(0),
            mask.stride(0),
            *out.stride(),
            SYMMETRIC=symmetric,
            HAS_WEIGHTS=weights is not out,
            HAS_MASK=mask is not out,
            WIDE=wide,
            TILE=tile,
            BLOCK_ROWS=configuration.block_rows,
            num_warps=configuration.warps,
            num_stages=configuration.stages,
        )
    return out


def _check(
    x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None, mask: torch.Tensor | None, out: torch.Tensor | None
) -> torch.Tensor:
    """Check the arguments and return `out`, or zeros of its shape."""
    for name, rows in (("x", x), ("y", y)):
        if rows.ndim != 2 or rows.dtype not in DTYPES:
            raise ReplaceMeError(f"gram: {name} must be [tokens, hidden] floats, got {_describe(rows)}")
    if x.shape[0] != y.shape[0]:
        raise ReplaceMeError(f"gram: x and y must have as many rows, got {x.shape[0]} and {y.shape[0]}")
    if weights is not None and (weights.shape != x.shape[:1] or not weights.is_floating_point()):
        raise ReplaceMeError(f"gram: weights must be {x.shape[0]} floats, got {_describe(weights)}")
    if mask is not None and (mask.shape != x.shape[:1] or mask.dtype != torch.bool):
        raise ReplaceMeError(f"gram: mask must be {x.shape[0]} bools, got {_describe(mask)}")
    shape = (x.shape[1], y.shape[1])
    if out is not None and (out.shape != shape or out.dtype != torch.float64):
        raise ReplaceMeError(f"gram: out must be float64 {list(shape)}, got {_describe(out)}")
    for name, other in (("y", y), ("weights", weights), ("mask", mask), ("out", out)):
        if other is not None and other.device != x.device:
            raise ReplaceMeError(f"gram: {name} is on {other.device}, x on {x.device}")
    return torch.zeros(shape, dtype=torch.float64, device=x.device) if out is None else out


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
