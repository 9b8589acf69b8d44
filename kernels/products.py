"""Products of stacked 16-bit rows, `out += sum_k left_k^T right_k` in float64: the plan and the portable kernel.

Why it is exact: products of 16-bit values are exact in float32, and errors arise in long sums on tensor cores, which
truncate. A short run (`run_rows`) is multiplied on its own and added, rounded to nearest, to a float32 total; after
`FLUSH_ROWS` rows at most the total goes to memory, and the totals are added in float64, always in one order. Why it is
fast: a symmetric product computes its lower tiles only and mirrors them; rows are cut into chunks so that the units of
work (a tile of one product, a chunk of its rows) fill the device also when the tiles alone do not. A unit's totals
belong to one program: no atomics on floating point, the same inputs give the same bits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from replaceme.kernels.arguments import dependent_launch
from replaceme.kernels.parts import Operand, pairs

try:
    import triton
    import triton.language as tl
except ImportError:  # no Triton on this platform: the references serve
    triton = None

FLUSH_ROWS = 16384  # of one float32 total: the same run 128 times over stays within 1e-6 (docs/kernels.md)
FINISH_BLOCK, FINISH_WARPS = 32, 4  # edge of what one program adds up and mirrors


@dataclass(frozen=True)
class Product:
    """`out += left^T right`, float64 [left.columns, right.columns], contiguous; symmetric: `out` is, and stays so;
    fresh: `out` holds nothing yet and is written without being read."""

    left: Operand
    right: Operand
    out: torch.Tensor
    symmetric: bool = False
    fresh: bool = False

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs of parts to multiply."""
        return pairs(self.left, self.right)


@dataclass(frozen=True)
class Shape:
    """The properties of one product that a plan depends on."""

    columns: int
    others: int
    rows: int
    pairs: int
    symmetric: bool


@dataclass(frozen=True)
class Tiling:
    """Tile of a unit [height, width], rows of a float32 run, and the cost of a unit beside its rows, in rows."""

    height: int
    width: int
    run_rows: int
    overhead_rows: int
    half: int  # a unit may compute the left `half` columns of its tile alone

    def work(self, row: int, column: int, symmetric: bool) -> int:
        """Return how many halves of the tile at (row, column) hold elements on or below the diagonal."""
        halves = self.width // self.half
        if not symmetric:
            return halves
        return sum(row + self.height > column + h * self.half for h in range(halves))


UNIT = ("product", "row", "column", "start", "runs", "halves", "slot", "")


@dataclass(frozen=True)
class Plan:
    """Units of work, int32 [units, 8] in the order of UNIT, longest first; tiles [tiles, 4]: product, row, column,
    halves. The totals of a unit go to its slot: tile t has the slots t * chunks ... t * chunks + chunks - 1."""

    tiling: Tiling
    units: torch.Tensor
    tiles: torch.Tensor
    counts: tuple[int, ...]  # tiles of each product
    chunks: int

    def partial(self) -> torch.Tensor:
        """Allocate room for the totals of all slots, float32."""
        size = len(self.tiles) * self.chunks * self.tiling.height * self.tiling.width
        return torch.empty(size, dtype=torch.float32, device=self.units.device)


@lru_cache(maxsize=64)
def plan(shapes: tuple[Shape, ...], tiling: Tiling, processors: int, device: torch.device) -> Plan:
    """Cut products into tiles and rows into chunks, so that the units keep `processors` busy to the end."""
    tiles = [
        (product, row, column, tiling.work(row, column, shape.symmetric))
        for product, shape in enumerate(shapes)
        for row in range(0, shape.columns, tiling.height)
        for column in range(0, shape.others, tiling.width)
    ]
    tiles = [tile for tile in tiles if tile[3]]
    rows = max(shape.rows for shape in shapes)
    runs = max(1, -(-rows // tiling.run_rows))
    halves = tiling.width // tiling.half
    work = sum(tile[3] * shapes[tile[0]].pairs for tile in tiles) / halves
    chunks = _chunks(runs, work, tiling, processors)
    size = -(-runs // chunks)
    chunks = -(-runs // size)
    units = [
        (*tile[:3], chunk * size * tiling.run_rows, min(size, runs - chunk * size), tile[3], n * chunks + chunk, 0)
        for chunk in range(chunks)
        for n, tile in enumerate(tiles)
    ]
    units.sort(key=lambda unit: -unit[4] * unit[5] * shapes[unit[0]].pairs)
    tables = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (units, tiles))
    counts = Counter(tile[0] for tile in tiles)
    return Plan(tiling, *tables, tuple(counts[product] for product in range(len(shapes))), chunks)


def _chunks(runs: int, work: float, tiling: Tiling, processors: int) -> int:
    """Return the number of chunks with the shortest estimated time; `work` counts whole tiles of one pass over the
    rows.
    """
    fewest = -(-runs * tiling.run_rows // FLUSH_ROWS)

    def cost(chunks: int) -> float:
        waves = -(-work * chunks // processors)
        return waves * (runs * tiling.run_rows / chunks + tiling.overhead_rows) + chunks * tiling.overhead_rows / 8

    return min(range(fewest, min(runs, fewest + 64) + 1), key=cost)


@dataclass(frozen=True)
class Configuration:
    """Tile edge, rows of one float32 run, warps and pipeline stages of one launch of the portable kernel."""

    tile: int
    block_rows: int
    warps: int
    stages: int

    @property
    def tiling(self) -> Tiling:
        """Tiling for the plan."""
        return Tiling(self.tile, self.tile, self.block_rows, 8 * self.block_rows, self.tile)


SMALL = Configuration(tile=64, block_rows=64, warps=4, stages=3)
LARGE = Configuration(tile=128, block_rows=64, warps=8, stages=3)  # 96 KB: fits sm_86 and sm_89
LARGE_FROM = 1024  # columns from which 128-wide tiles pay


if triton is not None:

    @triton.jit
    def _products_kernel(
        left_ptr,
        right_ptr,
        partial_ptr,
        units_ptr,
        product,
        left_rows,
        right_rows,
        left_columns,
        right_columns,
        left_stride,
        right_stride,
        left_part,
        right_part,
        PAIRS: tl.constexpr,
        CODE: tl.constexpr,
        WIDEN: tl.constexpr,
        TILE: tl.constexpr,
        BLOCK_ROWS: tl.constexpr,
    ):
        unit = units_ptr + tl.program_id(0) * 8
        if tl.load(unit) != product:
            return
        i = (tl.load(unit + 1) + tl.arange(0, TILE)).to(tl.int64)
        j = (tl.load(unit + 2) + tl.arange(0, TILE)).to(tl.int64)
        start = tl.load(unit + 3)
        runs = tl.load(unit + 4)
        slot = tl.load(unit + 6).to(tl.int64)
        in_i = i < left_columns
        in_j = j < right_columns
        total = tl.zeros((TILE, TILE), dtype=tl.float32)
        for step in range(PAIRS * runs):
            pair = step // runs
            shift = pair * 4
            p = (CODE >> shift) & 3
            q = (CODE >> (shift + 2)) & 3
            k = (start + (step - pair * runs) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
            left = tl.load(
                left_ptr + (k + p * left_part)[:, None] * left_stride + i[None, :],
                mask=(k < left_rows)[:, None] & in_i[None, :],
                other=0.0,
            )
            right = tl.load(
                right_ptr + (k + q * right_part)[:, None] * right_stride + j[None, :],
                mask=(k < right_rows)[:, None] & in_j[None, :],
                other=0.0,
            )
            if WIDEN:
                left = left.to(tl.float32)
                right = right.to(tl.float32)
            run = tl.dot(tl.trans(left), right, input_precision="ieee", out_dtype=tl.float32)
            total = tl.fma(run, 1.0, total)  # Triton would fold a plain sum into one long, truncating accumulation
        r = tl.arange(0, TILE)
        tl.store(partial_ptr + slot * TILE * TILE + r[:, None] * TILE + r[None, :], total)

    @triton.jit
    def _finish_kernel(
        partial_ptr,
        tiles_ptr,
        out_ptr,
        first_tile,
        chunks,
        columns,
        others,
        SYMMETRIC: tl.constexpr,
        FRESH: tl.constexpr,
        PDL: tl.constexpr,
        HEIGHT: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        if PDL:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        number = first_tile + tl.program_id(0)
        tile = tiles_ptr + number * 4
        across: tl.constexpr = WIDTH // BLOCK
        r = (tl.program_id(1) // across) * BLOCK + tl.arange(0, BLOCK)
        c = (tl.program_id(1) % across) * BLOCK + tl.arange(0, BLOCK)
        i = (tl.load(tile + 1) + r).to(tl.int64)
        j = (tl.load(tile + 2) + c).to(tl.int64)
        inside = (i < columns)[:, None] & (j < others)[None, :]
        if SYMMETRIC:
            inside = inside & (i[:, None] >= j[None, :])
        own = out_ptr + i[:, None] * others + j[None, :]
        total = tl.zeros((BLOCK, BLOCK), dtype=tl.float64)
        if not FRESH:
            total += tl.load(own, mask=inside, other=0.0)
        for chunk in range(chunks):
            slot = number.to(tl.int64) * chunks + chunk
            part = tl.load(partial_ptr + slot * HEIGHT * WIDTH + r[:, None] * WIDTH + c[None, :])
            total += part.to(tl.float64)
        tl.store(own, total, mask=inside)
        if SYMMETRIC:  # `out` is symmetric, so its upper triangle need not be read
            mirrored = out_ptr + j[:, None] * others + i[None, :]
            tl.store(mirrored, tl.trans(total), mask=tl.trans(inside & (i[:, None] > j[None, :])))


def shapes_of(products: Sequence[Product]) -> tuple[Shape, ...]:
    """Return the properties of these products that a plan depends on."""
    return tuple(Shape(p.left.columns, p.right.columns, p.left.rows, len(p.pairs), p.symmetric) for p in products)


def code_of(product: Product) -> int:
    """Encode the pairs of parts in one integer, four bits each."""
    return sum((p | q << 2) << 4 * n for n, (p, q) in enumerate(product.pairs))


def add_products(products: Sequence[Product]) -> None:
    """Add each product into its `out`, by the portable kernel; CPU tensors need TRITON_INTERPRET=1."""
    matrix = products[0].left.matrix
    interpreted = not matrix.is_cuda
    configuration = LARGE if max(max(p.out.shape) for p in products) >= LARGE_FROM else SMALL
    processors = 4 if interpreted else torch.cuda.get_device_properties(matrix.device).multi_processor_count
    made = plan(shapes_of(products), configuration.tiling, processors, matrix.device)
    partial = made.partial()
    with torch.cuda.device(-1 if interpreted else matrix.device):
        for number, product in enumerate(products):
            left, right = product.left, product.right
            _products_kernel[(len(made.units),)](
                left.matrix,
                right.matrix,
                partial,
                made.units,
                number,
                left.rows,
                right.rows,
                left.columns,
                right.columns,
                left.matrix.stride(0),
                right.matrix.stride(0),
                left.stride,
                right.stride,
                PAIRS=len(product.pairs),
                CODE=code_of(product),
                # the interpreter stores bfloat16 as raw uint16 and would multiply those
                WIDEN=interpreted and left.matrix.dtype == torch.bfloat16,
                TILE=configuration.tile,
                BLOCK_ROWS=configuration.block_rows,
                num_warps=configuration.warps,
                num_stages=configuration.stages,
            )
    finish(products, made, partial)


def finish(products: Sequence[Product], made: Plan, partial: torch.Tensor) -> None:
    """Add the slots' totals, in order, into float64 `out` and its mirror image."""
    tiling = made.tiling
    block = min(tiling.height, FINISH_BLOCK)
    first = 0
    with torch.cuda.device(partial.device if partial.is_cuda else -1):
        for product, count in zip(products, made.counts, strict=True):
            _finish_kernel[(count, tiling.height * tiling.width // block**2)](
                partial,
                made.tiles,
                product.out,
                first,
                made.chunks,
                *product.out.shape,
                SYMMETRIC=product.symmetric,
                FRESH=product.fresh,
                HEIGHT=tiling.height,
                WIDTH=tiling.width,
                BLOCK=block,
                num_warps=FINISH_WARPS,
                **dependent_launch(partial.device),
            )
            first += count
