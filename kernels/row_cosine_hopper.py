"""The Hopper path of `row_cosine`: a warp-specialised GEMM whose epilogue reduces each row, for 16-bit rows.

One program a multiprocessor walks over tiles of 128 rows x 256 columns of p = x T. A producer warp copies blocks of x
and t to shared memory with TMA; two warpgroups hold 64 x 256 float32 accumulators each, release a stage as soon as
their wgmma has read it, then form r = a - b + c from global memory, slice by slice, and reduce dot, |p|^2 and |r|^2.
Why it is fast: meanwhile the producer continues with the next tile and has prefetched the rows of the terms into L2;
the terms are read in 16-byte pieces, and the accumulator is brought to their layout by exchanges within a warp. Rows of
tiles are walked in groups, so that the tiles at work at one time share what they read of x and t in L2.

Importing this file needs Triton with Gluon (3.6 or newer); `row_cosine` imports it when it first meets such a GPU.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS, COLUMNS, BLOCK_K = 128, 256, 64  # of one tile, and of one stage along hidden
STAGES = 4  # 48 KB each
GROUP = 16  # tiles of rows walked together: 132 programs then work on about 16 x 8 tiles
SLICES = 4  # of the epilogue: 64 rows x 64 columns at a time for each warpgroup
VECTOR = 8  # neighbouring columns of the terms that a lane reads: 8, 4 or 2
PREFETCH = 16  # blocks of hidden before the end of a tile at which L2 is asked for its terms; 0: never
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 240, 24  # of a thread
GLUON_TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}

_ROWS, _COLUMNS, _BLOCK_K = gl.constexpr(ROWS), gl.constexpr(COLUMNS), gl.constexpr(BLOCK_K)
_HALF = gl.constexpr(ROWS // 2)  # rows of one warpgroup


@gluon.jit
def _place(tile, row_tiles, column_tiles, GROUP: gl.constexpr):
    """Return (first row, column tile) of a tile: a group's rows run fastest."""
    group = tile // (GROUP * column_tiles)
    within = tile - group * GROUP * column_tiles
    height = gl.minimum(row_tiles - group * GROUP, GROUP)
    return (group * GROUP + within % height) * _ROWS, within // height


@gluon.jit
def _ask_l2(pointer, stride, row, column, tokens, other):
    """Prefetch 8 rows of a tile of one operand into L2, a lane for each 128 bytes or less."""
    LINE: gl.constexpr = 1024 // pointer.dtype.element_ty.primitive_bitwidth
    LINES: gl.constexpr = _COLUMNS // LINE
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [32 // LINES, LINES], [1, 1], [1, 0])
    rows = row + gl.arange(0, 8, gl.SliceLayout(1, layout))
    columns = column + LINE * gl.arange(0, LINES, gl.SliceLayout(0, layout))
    rows = gl.minimum(rows, tokens - 1).to(gl.int64) * stride
    columns = gl.minimum(columns, other - 1)
    gl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [(pointer + rows[:, None] + columns[None, :]).to(gl.int64, bitcast=True)],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _produce(
    x_desc, t_desc, x_smem, t_smem, ready, free, sizes, operands, strides,
    TERMS: gl.constexpr, HAS_Y: gl.constexpr, GROUP: gl.constexpr, PREFETCH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    tokens, other, blocks, parts, part_rows = sizes
    row_tiles = gl.cdiv(tokens, _ROWS)
    column_tiles = gl.cdiv(other, _COLUMNS)
    index = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row, column_tile = _place(tile, row_tiles, column_tiles, GROUP)
        column = column_tile * _COLUMNS
        first_asked = gl.maximum(blocks * parts - PREFETCH, 0)
        for part in range(parts):
            for block in range(blocks):
                stage = index % STAGES
                bar = ready.index(stage)
                k = block * _BLOCK_K
                mbarrier.wait(free.index(stage), ((index // STAGES) & 1) ^ 1)
                mbarrier.expect(bar, (_ROWS + _COLUMNS) * _BLOCK_K * 2)
                tma.async_copy_global_to_shared(x_desc, [row, k], bar, x_smem.index(2 * stage))
                tma.async_copy_global_to_shared(x_desc, [row + _HALF, k], bar, x_smem.index(2 * stage + 1))
                tma.async_copy_global_to_shared(t_desc, [part * part_rows + k, column], bar, t_smem.index(stage))
                index += 1
                if PREFETCH > 0:
                    asked = part * blocks + block - first_asked
                    if (asked >= 0) & (asked < _ROWS // 8):
                        for term in gl.static_range(TERMS):
                            _ask_l2(operands[term], strides[term], row + 8 * asked, column, tokens, other)
                        if HAS_Y:
                            _ask_l2(operands[3], strides[3], row + 8 * asked, column, tokens, other)


@gluon.constexpr_function
def _quad_layout(width, vector):
    """Return the layout of 64 rows x width columns, `vector` neighbouring columns a lane, as many on in each lane of a
    quad.

    Rows lie as in the accumulator; with 2 columns so do the columns.
    """
    columns = [[0, bit] for bit in (1, 2, 4, 8, 16, 32, 64, 128) if bit < width and bit not in (vector, 2 * vector)]
    lanes = [[0, vector], [0, 2 * vector], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([*columns, [8, 0]], lanes, [[16, 0], [32, 0]], [], [64, width])


@gluon.jit
def _slices(value, COUNT: gl.constexpr):
    """Split the columns of an accumulator into COUNT runs; no data moves, since a thread holds columns of each."""
    if COUNT == 1:
        return (value,)
    else:  # Gluon compiles one branch only
        first, second = value.reshape([value.shape[0], 2, value.shape[1] // 2]).permute([0, 2, 1]).split()
        return _slices(first, COUNT // 2) + _slices(second, COUNT // 2)


@gluon.jit
def _fetch(pointer, stride, rows, columns, inside, VECTOR: gl.constexpr):
    """Load one slice of an operand in float32; `usable` promises the alignment, which Triton 3.6 forgets in a
    partition.
    """
    BYTES: gl.constexpr = min(16, VECTOR * pointer.dtype.element_ty.primitive_bitwidth // 8)
    place = pointer + (rows * stride)[:, None] + columns[None, :]
    place = gl.max_contiguous(gl.multiple_of(place, [1, BYTES]), [1, VECTOR])
    return gl.load(place, mask=inside, other=0.0).to(gl.float32)


@gluon.jit
def _consume(
    x_smem, t_smem, ready, free, sizes, operands, strides, mask_ptr, mask_stride, out_ptr,
    WARPGROUP: gl.constexpr, TERMS: gl.constexpr, HAS_Y: gl.constexpr, HAS_MASK: gl.constexpr, GROUP: gl.constexpr,
    SLICES: gl.constexpr, VECTOR: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    WIDTH: gl.constexpr = _COLUMNS // SLICES
    accumulator: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 256, 16])
    layout: gl.constexpr = _quad_layout(WIDTH, VECTOR)
    tokens, other, blocks, parts, _ = sizes
    row_tiles = gl.cdiv(tokens, _ROWS)
    column_tiles = gl.cdiv(other, _COLUMNS)
    index = 0
    for tile in range(gl.program_id(0), row_tiles * column_tiles, gl.num_programs(0)):
        row, column_tile = _place(tile, row_tiles, column_tiles, GROUP)
        p = gl.zeros([_HALF, _COLUMNS], gl.float32, accumulator)
        for block in range(blocks * parts):
            stage = index % STAGES
            mbarrier.wait(ready.index(stage), (index // STAGES) & 1)
            p = warpgroup_mma(x_smem.index(2 * stage + WARPGROUP), t_smem.index(stage), p, is_async=True)
            p = warpgroup_mma_wait(1, deps=[p])
            if block > 0:
                mbarrier.arrive(free.index((index - 1) % STAGES), count=1)
            index += 1
        p = warpgroup_mma_wait(0, deps=[p])
        mbarrier.arrive(free.index((index - 1) % STAGES), count=1)

        rows = row + WARPGROUP * _HALF + gl.arange(0, _HALF, gl.SliceLayout(1, layout))
        valid = rows < tokens
        rows = rows.to(gl.int64)
        if HAS_MASK:
            valid = valid & (gl.load(mask_ptr + rows * mask_stride, mask=valid, other=0) != 0)
        dot = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, layout))
        norm_p = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, layout))
        norm_r = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, layout))
        runs = _slices(p, SLICES)
        for s in gl.static_range(SLICES):
            columns = column_tile * _COLUMNS + s * WIDTH + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
            inside = gl.max_constancy(valid[:, None] & (columns < other)[None, :], [1, VECTOR])
            r = _fetch(operands[0], strides[0], rows, columns, inside, VECTOR)
            if TERMS > 1:
                r -= _fetch(operands[1], strides[1], rows, columns, inside, VECTOR)
            if TERMS > 2:
                r += _fetch(operands[2], strides[2], rows, columns, inside, VECTOR)
            q = gl.convert_layout(runs[s], layout)
            if HAS_Y:
                q += _fetch(operands[3], strides[3], rows, columns, inside, VECTOR)
            dot += gl.sum(q * r, axis=1)
            norm_p += gl.sum(q * q, axis=1)
            norm_r += gl.sum(r * r, axis=1)
        target = out_ptr + column_tile.to(gl.int64) * 3 * tokens + rows
        gl.store(target, gl.where(valid, dot, 0.0), mask=rows < tokens)
        gl.store(target + tokens, gl.where(valid, norm_p, 0.0), mask=rows < tokens)
        gl.store(target + tokens + tokens, gl.where(valid, norm_r, 0.0), mask=rows < tokens)


@gluon.jit
def row_cosine_kernel(
    x_desc, t_desc,
    a_ptr, b_ptr, c_ptr, y_ptr, mask_ptr, out_ptr,
    tokens, other, blocks, parts, part_rows,
    a_stride, b_stride, c_stride, y_stride, mask_stride,
    TERMS: gl.constexpr, HAS_Y: gl.constexpr, HAS_MASK: gl.constexpr, GROUP: gl.constexpr, SLICES: gl.constexpr,
    VECTOR: gl.constexpr, PREFETCH: gl.constexpr, STAGES: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    x_smem = gl.allocate_shared_memory(x_desc.dtype, [2 * STAGES, _HALF, _BLOCK_K], x_desc.layout)
    t_smem = gl.allocate_shared_memory(t_desc.dtype, [STAGES, _BLOCK_K, _COLUMNS], t_desc.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(free.index(s), count=2)
    fence_async_shared()
    sizes = (tokens, other, blocks, parts, part_rows)
    operands = (a_ptr, b_ptr, c_ptr, y_ptr)
    strides = (a_stride, b_stride, c_stride, y_stride)
    # constexprs stay such only where they are written out, not in a tuple that has a name
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    x_smem, t_smem, ready, free, sizes, operands, strides, mask_ptr, mask_stride, out_ptr,
                    gl.constexpr(0), TERMS, HAS_Y, HAS_MASK, GROUP, SLICES, VECTOR, STAGES,
                ),
            ),
            (
                _consume,
                (
                    x_smem, t_smem, ready, free, sizes, operands, strides, mask_ptr, mask_stride, out_ptr,
                    gl.constexpr(1), TERMS, HAS_Y, HAS_MASK, GROUP, SLICES, VECTOR, STAGES,
                ),
            ),
            (
                _produce,
                (
                    x_desc, t_desc, x_smem, t_smem, ready, free, sizes, operands, strides,
                    TERMS, HAS_Y, GROUP, PREFETCH, STAGES,
                ),
            ),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip


def usable(x: torch.Tensor, t: torch.Tensor, rows: list[torch.Tensor]) -> bool:
    """Return whether TMA can read x [tokens, hidden] and t [parts, hidden, other], and 16-byte loads the terms and
    y.
    """
    if x.dtype not in GLUON_TYPES or 0 in x.shape or torch.cuda.get_device_capability(x.device)[0] != 9:
        return False
    aligned = all(
        operand.stride(-1) == 1
        and operand.stride(-2) >= operand.shape[-1]
        and operand.stride(-2) * operand.element_size() % 16 == 0
        and operand.data_ptr() % 16 == 0
        for operand in (x, t, *rows)
    )
    return aligned and t.shape[2] % 8 == 0 and t.stride(0) % t.stride(1) == 0


def partial_sums(
    x: torch.Tensor, t: torch.Tensor, terms: tuple[torch.Tensor, ...], y: torch.Tensor | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute sums of p r, p p and r r over each run of 256 columns, float32 [runs, 3, tokens]; x and t must be
    `usable`.
    """
    (tokens, hidden), (parts, _, other) = x.shape, t.shape
    column_tiles = triton.cdiv(other, COLUMNS)
    out = torch.empty(column_tiles, 3, tokens, dtype=torch.float32, device=x.device)
    part_rows = t.stride(0) // t.stride(1)
    kind = GLUON_TYPES[x.dtype]
    x_layout = gl.NVMMASharedLayout.get_default_for([ROWS // 2, BLOCK_K], kind)
    t_layout = gl.NVMMASharedLayout.get_default_for([BLOCK_K, COLUMNS], kind)
    t_shape = [(parts - 1) * part_rows + hidden, other]
    operands = [*terms, *[terms[0]] * (3 - len(terms)), terms[0] if y is None else y]
    programs = torch.cuda.get_device_properties(x.device).multi_processor_count
    with torch.cuda.device(x.device):
        row_cosine_kernel[(min(programs, triton.cdiv(tokens, ROWS) * column_tiles),)](
            TensorDescriptor.from_tensor(x, [ROWS // 2, BLOCK_K], x_layout),
            TensorDescriptor(t, t_shape, [t.stride(1), 1], [BLOCK_K, COLUMNS], t_layout),
            *operands,
            out if mask is None else mask,
            out,
            tokens,
            other,
            triton.cdiv(hidden, BLOCK_K),
            parts,
            part_rows,
            *(operand.stride(0) for operand in operands),
            0 if mask is None else mask.stride(0),
            TERMS=len(terms),
            HAS_Y=y is not None,
            HAS_MASK=mask is not None,
            GROUP=GROUP,
            SLICES=SLICES,
            VECTOR=VECTOR,
            PREFETCH=PREFETCH,
            STAGES=STAGES,
            CONSUMER_REGISTERS=CONSUMER_REGISTERS,
            PRODUCER_REGISTERS=PRODUCER_REGISTERS,
            num_warps=4,
        )
    return out
