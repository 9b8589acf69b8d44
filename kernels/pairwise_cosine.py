"""Mean distances of all pairs of L states in one launch: cosine `1 - cos(h_i, h_j)`, angular `arccos(cos) / pi`.

h_k [tokens, hidden] for k < L are bfloat16, float16 or float32 (float64 goes through the torch reference); the means,
float64 [L, L], are over the tokens whose mask is true. Rows whose mask is false are never read, so NaN there is
harmless; NaN elsewhere shows in the result. A zero vector has cosine 0 to any other state. Source: eq. 4 and Fig. 7 of
arXiv 2505.02819.

Why it is exact: products of bf16 or fp16 values are exact in float32, and errors arise in long float32 sums, on tensor
cores by truncation. So a dot product is made of short runs of `block_columns` columns, each from zero, added outside of
the tensor cores (float32 rows use none). 1 - cos and the sums over tokens are float64: states of equal bits are at
distance 0, others within about 1e-6, angles within about 1e-6 / angle. The squared norms must lie in float32's range:
norms of 1e-12 to 1e19. Why it is fast: the L rows of a token are read once, from where they lie (no [tokens, L, hidden]
copy: a table holds each state's place), and never leave the chip. A program owns a run of tokens and its own partial
sums, in L2 cache; about four programs on each processor hide one another's latency. The partition depends on the shapes
alone and nothing is summed by atomics: the same inputs give the same bits.
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

MOST_STATES = 128  # of the kernel; more go through the reference
PAIRS_PER_WARP = 128  # of a token's distances at once
REFERENCE_CHUNK_BYTES = 2**28  # of a float64 slab [tokens, L, hidden]

Distances = tuple[torch.Tensor, torch.Tensor]


def pairwise_cosine_reference(hidden: Hidden, mask: torch.Tensor | None = None) -> Distances:
    """Compute both distances in plain torch float64; arguments and result as in `pairwise_cosine`."""
    states = checked("pairwise_cosine", hidden, mask)
    count, (tokens, columns) = len(states), states[0].shape
    sums = torch.zeros(2, count, count, dtype=torch.float64, device=states[0].device)
    chunk = max(1, REFERENCE_CHUNK_BYTES // (8 * count * max(columns, 1)))
    rows = torch.arange(tokens, device=sums.device) if mask is None else mask.nonzero()[:, 0]
    for part in rows.split(chunk):
        unit = torch.nn.functional.normalize(torch.stack([state[part].double() for state in states], 1), dim=-1)
        cosine = (unit @ unit.mT).clamp(-1, 1)
        sums[0] += (1 - cosine).sum(0)
        sums[1] += (cosine.arccos() / torch.pi).sum(0)
    return _means(sums, tokens, mask)


@dataclass(frozen=True)
class Configuration:
    """Columns of one float32 run, warps and pipeline stages of one launch, and the most programs."""

    block_columns: int
    warps: int
    stages: int
    programs: int = 1024


FEW = Configuration(block_columns=64, warps=4, stages=5, programs=512)  # up to 64 states
MANY = Configuration(block_columns=64, warps=8, stages=3, programs=512)
IEEE_FEW = Configuration(block_columns=16, warps=4, stages=3)  # float32 operands, no tensor cores
IEEE_MANY = Configuration(block_columns=16, warps=8, stages=3, programs=512)


def _configuration(padded: int, wide: bool) -> Configuration:
    if wide:
        return IEEE_FEW if padded <= 64 else IEEE_MANY
    return FEW if padded <= 64 else MANY


if triton is not None:

    @triton.jit
    def _angle_over_pi(distance):
        """Compute arccos(1 - distance) / pi within 2e-7, for float32 distances of 0 to 2; the polynomial is Cephes'
        asinf.
        """
        beyond = distance > 1.0  # the angle is pi minus that of the opposite vector
        distance = tl.where(beyond, 2.0 - distance, distance)
        wide = distance > 0.5  # from there pi/2 - arcsin(cos), below 2 arcsin(sqrt(distance / 2))
        squared = tl.where(wide, (1.0 - distance) * (1.0 - distance), 0.5 * distance)
        sine = tl.sqrt(squared)
        tail = 4.2163199048e-2 * squared + 2.4181311049e-2
        tail = tail * squared + 4.5470025998e-2
        tail = tail * squared + 7.4953002686e-2
        tail = tail * squared + 1.6666752422e-1
        arc = (sine + sine * squared * tail) * 0.3183098861837907
        angle = tl.where(wide, 0.5 - arc, 2.0 * arc)
        return tl.where(beyond, 1.0 - angle, angle)

    @triton.jit
    def _inverse_norm(squares):
        """Compute 1 / max(sqrt(squares), 1e-12) of float32 squares in float64, by one Newton step from float32."""
        squares = tl.where(squares < 1e-24, 1e-24, squares)  # tl.maximum would hide NaN
        inverse = tl.rsqrt(squares).to(tl.float64)
        return inverse * (1.5 - 0.5 * squares.to(tl.float64) * inverse * inverse)

    @triton.jit
    def _pairwise_cosine_kernel(
        first_ptr,
        table_ptr,
        mask_ptr,
        products_ptr,
        sums_ptr,
        states,
        tokens,
        tokens_each,
        columns_in_units,
        mask_stride,
        UNIT: tl.constexpr,
        HAS_MASK: tl.constexpr,
        WIDE: tl.constexpr,
        PADDED: tl.constexpr,
        BLOCK_COLUMNS: tl.constexpr,
        BLOCK_PAIRS: tl.constexpr,
    ):
        program = tl.program_id(0).to(tl.int64)
        start = program * tokens_each
        columns = columns_in_units * UNIT  # so that the compiler sees how wide the loads may be
        pairs = states * states
        products_ptr += program * PADDED * PADDED
        sums_ptr += program * 2 * pairs
        i = tl.arange(0, PADDED)
        in_i = i < states
        place = tl.load(table_ptr + i, mask=in_i, other=0)
        stride = tl.load(table_ptr + states + i, mask=in_i, other=0)
        for step in range(tl.minimum(tokens_each, tokens - start)):
            token = start + step
            keep = True
            if HAS_MASK:
                keep = tl.load(mask_ptr + token * mask_stride) != 0
            if keep:
                rows = first_ptr + (place + token * stride)[:, None] * UNIT
                products = tl.zeros((PADDED, PADDED), dtype=tl.float32)
                for column in range(0, columns, BLOCK_COLUMNS):
                    k = column + tl.arange(0, BLOCK_COLUMNS)
                    x = tl.load(rows + k[None, :], mask=in_i[:, None] & (k < columns)[None, :], other=0.0)
                    if WIDE:
                        x = x.to(tl.float32)
                    run = tl.dot(x, tl.trans(x), input_precision="ieee", out_dtype=tl.float32)
                    # not `products += run`, which the compiler would make one long sum on the tensor cores
                    products = tl.fma(run, 1.0, products)
                tl.store(products_ptr + i[:, None] * PADDED + i[None, :], products)
                tl.debug_barrier()  # the threads read one another's products
                for first_pair in range(0, pairs, BLOCK_PAIRS):
                    _add_distances(products_ptr, sums_ptr, first_pair, states, PADDED, BLOCK_PAIRS)
                tl.debug_barrier()  # before the next token's products

    @triton.jit
    def _add_distances(products_ptr, sums_ptr, first_pair, states, PADDED: tl.constexpr, BLOCK_PAIRS: tl.constexpr):
        """Add one token's distances of a block of pairs i * L + j to the program's sums."""
        pair = first_pair + tl.arange(0, BLOCK_PAIRS)
        i = pair // states
        j = pair - i * states
        wanted = j < i  # the lower triangle
        wanted = wanted & (i < states)
        product = tl.load(products_ptr + i * PADDED + j, mask=wanted, other=0.0).to(tl.float64)
        inverse_i = _inverse_norm(tl.load(products_ptr + i * (PADDED + 1), mask=wanted, other=1.0))
        inverse_j = _inverse_norm(tl.load(products_ptr + j * (PADDED + 1), mask=wanted, other=1.0))
        distance = (1.0 - product * (inverse_i * inverse_j)).to(tl.float32)
        distance = tl.where(distance < 0.0, 0.0, distance)
        distance = tl.where(distance > 2.0, 2.0, distance)
        cosine = sums_ptr + pair
        angular = cosine + states * states
        tl.store(cosine, tl.load(cosine, mask=wanted, other=0.0) + distance.to(tl.float64), mask=wanted)
        angle = _angle_over_pi(distance).to(tl.float64)
        tl.store(angular, tl.load(angular, mask=wanted, other=0.0) + angle, mask=wanted)


def pairwise_cosine(hidden: Hidden, mask: torch.Tensor | None = None) -> Distances:
    """Compute the means over tokens of both distances of all pairs of states: (cosine, angular), float64 [L, L] each.

    cosine[i, j] = mean of 1 - cos(h_i, h_j), angular[i, j] = mean of arccos(cos(h_i, h_j)) / pi, over the tokens whose
    mask is true; exactly symmetric, the diagonal exactly 0, all 0 when no token is left. hidden: L states
    [tokens, hidden] of one shape, float dtype and device and any strides, or one tensor [L, tokens, hidden] (states of
    a column stride other than 1 get copied); mask [tokens] bool. CUDA states go through Triton, CPU states, float64 and
    more than 128 states through `pairwise_cosine_reference`. Eq. 4 of the paper. Raises ReplaceMeError on inconsistent
    shapes, dtypes or devices.
    """
    states = checked("pairwise_cosine", hidden, mask)
    first = states[0]
    if triton is not None and first.is_cuda and first.dtype != torch.float64 and len(states) <= MOST_STATES:
        return _launch(states, mask)
    return pairwise_cosine_reference(states, mask)


def pairwise_cosine_triton(hidden: Hidden, mask: torch.Tensor | None = None) -> Distances:
    """Compute `pairwise_cosine` by the Triton kernel on any device; CPU tensors need TRITON_INTERPRET=1."""
    states = checked("pairwise_cosine", hidden, mask)
    if states[0].dtype == torch.float64 or len(states) > MOST_STATES:
        raise ReplaceMeError(
            f"pairwise_cosine: the kernel takes up to {MOST_STATES} states of at most 32 bits, "
            f"got {len(states)} of {describe(states[0])}"
        )
    return _launch(states, mask)


def _launch(states: list[torch.Tensor], mask: torch.Tensor | None) -> Distances:
    states = unit_columns(states)
    first, count = states[0], len(states)
    tokens, columns = first.shape
    interpreted = not first.is_cuda
    # the interpreter stores bfloat16 as raw uint16 and multiplies those, so it gets widened operands
    wide = first.dtype == torch.float32 or (interpreted and first.dtype == torch.bfloat16)
    padded = max(16, triton.next_power_of_2(count))
    configuration = _configuration(padded, wide)
    tokens_each = max(1, triton.cdiv(tokens, configuration.programs))
    programs = triton.cdiv(tokens, tokens_each)
    products = torch.empty(programs, padded, padded, dtype=torch.float32, device=first.device)  # of one token each
    sums = torch.zeros(programs, 2, count, count, dtype=torch.float64, device=first.device)
    if tokens:
        table, unit = places(states)
        flags = sums if mask is None else mask.view(torch.uint8)
        with torch.cuda.device(-1 if interpreted else first.device):
            _pairwise_cosine_kernel[(programs,)](
                first,
                table,
                flags,
                products,
                sums,
                count,
                tokens,
                tokens_each,
                columns // unit,
                flags.stride(0),
                UNIT=unit,
                HAS_MASK=mask is not None,
                WIDE=wide,
                PADDED=padded,
                BLOCK_COLUMNS=configuration.block_columns,
                BLOCK_PAIRS=min(padded * padded // 4, PAIRS_PER_WARP * configuration.warps),
                num_warps=configuration.warps,
                num_stages=configuration.stages,
            )
    return _means(sums.sum(0), tokens, mask)


def _means(sums: torch.Tensor, tokens: int, mask: torch.Tensor | None) -> Distances:
    """Divide sums [2, L, L] by the number of kept tokens, and make them symmetric with a zero diagonal."""
    lower = sums.tril(-1)  # a product's two triangles may differ in the last bit
    means = (lower + lower.mT) / (max(tokens, 1) if mask is None else mask.sum().clamp(min=1))
    return means[0], means[1]
