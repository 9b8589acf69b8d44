"""The products of `products.py` on Hopper (sm_90): warp-specialised, in one launch, written in Gluon.

A program computes one unit: a tile of 128 x 256 (128 x 128 for small products) over a chunk of rows. One warp keeps
four to six stages of 64 rows in flight by TMA; two warpgroups multiply, 64 rows of the tile each. A run is two stages:
first the left half of the tile, then the right half with the same stages, so that the run's accumulator [64, 128] and
the totals [64, 256] fit in registers together; while one warpgroup adds its run to the totals, the other keeps the
tensor cores busy.
Masks and strides do not occur here: `parts.py` made the rows plain.
"""

from collections.abc import Sequence

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from replaceme.kernels.arguments import dependent_launch
from replaceme.kernels.products import Product, Tiling, code_of, finish, plan, shapes_of

WIDE = Tiling(height=128, width=256, run_rows=128, overhead_rows=1000, half=128)
NARROW = Tiling(height=128, width=128, run_rows=128, overhead_rows=1000, half=128)
NARROW_TO = 1280  # columns up to which narrow tiles pay: more units, and less to add up
STAGES = {256: 4, 128: 6}  # by the tile's width: 192 KB
BLOCK_ROWS = 64  # of a stage


@gluon.jit
def _load(
    left,
    right_0,
    right_1,
    left_stages,
    right_stages,
    ready,
    free,
    units,
    left_part,
    right_part_0,
    right_part_1,
    PAIRS_0: gl.constexpr,
    CODE_0: gl.constexpr,
    PAIRS_1: gl.constexpr,
    CODE_1: gl.constexpr,
    BLOCK: gl.constexpr,
    WIDTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Bring the stages of this program's unit into shared memory, as they become free (the producer warp)."""
    HALVES: gl.constexpr = WIDTH // 128
    unit = units + gl.program_id(0) * 8
    second = gl.load(unit) == 1
    i = gl.load(unit + 1)
    j = gl.load(unit + 2)
    start = gl.load(unit + 3)
    blocks = gl.load(unit + 4) * 2
    wide = gl.load(unit + 5) == 2
    number_of_pairs = gl.where(second, PAIRS_1, PAIRS_0)
    code = gl.where(second, CODE_1, CODE_0)
    right_part = gl.where(second, right_part_1, right_part_0)
    gdc_wait()  # the kernel before may have formed the rows
    index = 0
    for pair in range(number_of_pairs):
        left_first = start + ((code >> (pair * 4)) & 3) * left_part
        right_first = start + ((code >> (pair * 4 + 2)) & 3) * right_part
        for block in range(blocks):
            stage = index % STAGES
            bar = ready.index(stage)
            mbarrier.wait(free.index(stage), ((index // STAGES) & 1) ^ 1)
            mbarrier.expect(bar, 2 * 256 * BLOCK, pred=not wide)  # bytes: 128 columns on the left, 128 on the right
            mbarrier.expect(bar, 2 * 384 * BLOCK, pred=wide)
            k = left_first + block * BLOCK
            tma.async_copy_global_to_shared(left, [k, i], bar, left_stages.index(stage * 2))
            tma.async_copy_global_to_shared(left, [k, i + 64], bar, left_stages.index(stage * 2 + 1))
            k = right_first + block * BLOCK
            right = right_stages.index(stage * HALVES)
            if second:
                tma.async_copy_global_to_shared(right_1, [k, j], bar, right)
            else:
                tma.async_copy_global_to_shared(right_0, [k, j], bar, right)
            if HALVES == 2:
                right = right_stages.index(stage * 2 + 1)
                if second:
                    tma.async_copy_global_to_shared(right_1, [k, j + 128], bar, right, pred=wide)
                else:
                    tma.async_copy_global_to_shared(right_0, [k, j + 128], bar, right, pred=wide)
            index += 1


@gluon.jit
def _accumulate(
    left_stages,
    right_stages,
    ready,
    free,
    runs,
    target,
    HALVES: gl.constexpr,
    GROUP: gl.constexpr,
    WIDTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Add one warpgroup's runs of a unit: float32 totals [64, 128 * HALVES], stored at `target` [64, WIDTH]."""
    layout: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    left_total = gl.zeros([64, 128], gl.float32, layout)
    right_total = gl.zeros([64, 128], gl.float32, layout)
    run = gl.zeros([64, 128], gl.float32, layout)
    index = 0
    for _ in range(runs):
        first = index % STAGES
        phase = (index // STAGES) & 1
        for half in gl.static_range(HALVES):
            token = warpgroup_mma_init(run)
            for step in gl.static_range(2):
                if half == 0:
                    mbarrier.wait(ready.index(first + step), phase)
                rows = left_stages.index((first + step) * 2 + GROUP).permute([1, 0])
                others = right_stages.index((first + step) * (WIDTH // 128) + half)
                token = warpgroup_mma(rows, others, token, use_acc=step > 0, is_async=True)
                if half == HALVES - 1 and step == 1:
                    token = warpgroup_mma_wait(1, deps=[token])
                    mbarrier.arrive(free.index(first), count=1)
            run = warpgroup_mma_wait(0, deps=[token])
            if half == HALVES - 1:
                mbarrier.arrive(free.index(first + 1), count=1)
            if half == 0:
                left_total += run
            else:
                right_total += run
        index += 2
    i = gl.arange(0, 64, gl.SliceLayout(1, layout))
    j = gl.arange(0, 128, gl.SliceLayout(0, layout))
    gl.store(target + i[:, None] * WIDTH + j[None, :], left_total)
    if HALVES == 2:
        gl.store(target + i[:, None] * WIDTH + (j + 128)[None, :], right_total)


@gluon.jit
def _multiply(
    left_stages,
    right_stages,
    ready,
    free,
    units,
    partial,
    PAIRS_0: gl.constexpr,
    PAIRS_1: gl.constexpr,
    GROUP: gl.constexpr,
    WIDTH: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Multiply rows [64 * GROUP, 64 * GROUP + 64) of the unit's tile (a consumer warpgroup)."""
    unit = units + gl.program_id(0) * 8
    runs = gl.load(unit + 4) * gl.where(gl.load(unit) == 1, PAIRS_1, PAIRS_0)
    target = partial + gl.load(unit + 6).to(gl.int64) * (128 * WIDTH) + GROUP * (64 * WIDTH)
    halves = gl.load(unit + 5)
    gdc_wait()  # the kernel before may still read what lay where the totals go
    if WIDTH == 128:
        _accumulate(left_stages, right_stages, ready, free, runs, target, 1, GROUP, WIDTH, STAGES)
    elif halves == 2:
        _accumulate(left_stages, right_stages, ready, free, runs, target, 2, GROUP, WIDTH, STAGES)
    else:
        _accumulate(left_stages, right_stages, ready, free, runs, target, 1, GROUP, WIDTH, STAGES)


@gluon.jit
def _products_kernel(
    left,
    right_0,
    right_1,
    units,
    partial,
    left_part,
    right_part_0,
    right_part_1,
    PAIRS_0: gl.constexpr,
    CODE_0: gl.constexpr,
    PAIRS_1: gl.constexpr,
    CODE_1: gl.constexpr,
    BLOCK: gl.constexpr,
    WIDTH: gl.constexpr,
    STAGES: gl.constexpr,
    PDL: gl.constexpr,  # always: what dependent_launch says of sm_90
):
    gdc_launch_dependents()
    left_stages = gl.allocate_shared_memory(left.dtype, [STAGES * 2, BLOCK, 64], left.layout)
    right_stages = gl.allocate_shared_memory(left.dtype, [STAGES * (WIDTH // 128), BLOCK, 128], right_0.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(free.index(stage), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _multiply,
                (
                    left_stages,
                    right_stages,
                    ready,
                    free,
                    units,
                    partial,
                    PAIRS_0,
                    PAIRS_1,
                    gl.constexpr(0),
                    WIDTH,
                    STAGES,
                ),
            ),
            (
                _multiply,
                (
                    left_stages,
                    right_stages,
                    ready,
                    free,
                    units,
                    partial,
                    PAIRS_0,
                    PAIRS_1,
                    gl.constexpr(1),
                    WIDTH,
                    STAGES,
                ),
            ),
            (
                _load,
                (
                    left,
                    right_0,
                    right_1,
                    left_stages,
                    right_stages,
                    ready,
                    free,
                    units,
                    left_part,
                    right_part_0,
                    right_part_1,
                    PAIRS_0,
                    CODE_0,
                    PAIRS_1,
                    CODE_1,
                    BLOCK,
                    WIDTH,
                    STAGES,
                ),
            ),
        ],
        [4, 1],
        [232, 40],
    )


def serves(products: Sequence[Product]) -> bool:
    """Return whether this kernel computes these products on a CUDA device: one or two that share their left side, on
    sm_90.
    """
    left = products[0].left
    shared = len(products) <= 2 and all(product.left is left for product in products)
    return shared and torch.cuda.get_device_capability(left.matrix.device)[0] == 9


def add_products(products: Sequence[Product]) -> None:
    """Multiply in one launch and add each product into its `out`."""
    first, second = products[0], products[-1]
    device = first.left.matrix.device
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    tiling = WIDE if max(max(product.out.shape) for product in products) > NARROW_TO else NARROW
    made = plan(shapes_of(products), tiling, processors, device)
    partial = made.partial()
    with torch.cuda.device(device):
        _products_kernel[(len(made.units),)](
            _descriptor(first.left.matrix, 64),
            _descriptor(first.right.matrix, 128),
            _descriptor(second.right.matrix, 128),
            made.units,
            partial,
            first.left.stride,
            first.right.stride,
            second.right.stride,
            PAIRS_0=len(first.pairs),
            CODE_0=code_of(first),
            PAIRS_1=len(second.pairs),
            CODE_1=code_of(second),
            BLOCK=BLOCK_ROWS,
            WIDTH=made.tiling.width,
            STAGES=STAGES[made.tiling.width],
            num_warps=4,
            **dependent_launch(device),
        )
    finish(products, made, partial)


def _descriptor(matrix: torch.Tensor, width: int) -> TensorDescriptor:
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[matrix.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([BLOCK_ROWS, width], dtype)
    return TensorDescriptor.from_tensor(matrix, [BLOCK_ROWS, width], layout)
