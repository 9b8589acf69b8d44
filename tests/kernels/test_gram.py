"""Gram and cross products against float64: the torch reference, the Triton kernels interpreted, and on a GPU.

The interpreter is chosen when a kernel is decorated: test_interpreter.py runs this file in a process of its own.
"""

import importlib
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.core.errors import ReplaceMeError

kernels = importlib.import_module("replaceme.kernels.gram")  # the package's attribute `gram` is the function

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_AND_SINGLE = [torch.bfloat16, torch.float16, torch.float32]
ROUTES = ["triton"] if INTERPRETED else ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [(70, 65), (130, 1), (1, 63)] if INTERPRETED else [(63, 65), (1, 1), (500, 63), (1000, 500)]
# of the types, which test_matches_float64 has all, the one of most parts
FEWER = [torch.float32] if INTERPRETED else HALF_AND_SINGLE
LONG = 128 if INTERPRETED else 8192
ROWS = 70 if INTERPRETED else 131  # two programs
WIDTH = 40 if INTERPRETED else 65  # one tile or several, which test_matches_float64 has


def functions(route):
    """Return (gram, gram_cross, device) of a route; "cuda" goes through the dispatch."""
    if route == "cuda":
        return kernels.gram, kernels.gram_cross, "cuda"
    return getattr(kernels, f"gram_{route}"), getattr(kernels, f"gram_cross_{route}"), "cpu"


def limit(route):
    """Return relative Frobenius error allowed."""
    return 1e-14 if route == "reference" else 1e-6


def rows(tokens, hidden, dtype, device, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, hidden, generator=generator, dtype=torch.float64) + mean).to(dtype).to(device)


def error(found, expected):
    assert found.dtype == torch.float64
    return float((found.cpu() - expected.cpu()).norm() / expected.norm().clamp(min=1e-300))


def poisoned(*shape, dtype, device):
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def expected_sums(x, terms, weights=None, cross_weights=None, mask=None):
    """Return the definition, in float64."""
    keep = slice(None) if mask is None else mask
    ones = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)
    w = (ones if weights is None else weights.double())[keep]
    v = w if cross_weights is None else cross_weights.double()[keep]
    x = x[keep].double()
    r = sum(sign * term[keep].double() for sign, term in zip((1, -1, 1), terms, strict=False))
    gram, cross = (w[:, None] * x).T @ x, (v[:, None] * x).T @ r
    return kernels.Sums(gram, cross, w @ x, w @ r, w @ r.square().sum(1)), (w @ x.abs(), w @ r.abs())


def assert_sums(found, expected, route):
    """Assert that products are within the limit of their norm, sums of rows within that of the sums of magnitudes."""
    sums, (magnitude_x, magnitude_r) = expected
    for name in ("gram", "cross", "energy"):
        assert error(getattr(found, name), getattr(sums, name)) < limit(route), name
    for name, magnitude in (("sum_x", magnitude_x), ("sum_r", magnitude_r)):
        off = (getattr(found, name).cpu() - getattr(sums, name).cpu()).norm()
        assert off <= limit(route) * magnitude.norm().cpu(), name
    assert torch.equal(found.gram, found.gram.T)


# the interpreter takes seconds a case: every type at one size, every size in one type
CASES = [
    (*size, dtype)
    for size in SIZES
    for dtype in HALF_AND_SINGLE
    if not INTERPRETED or size == SIZES[0] or dtype is torch.float32
]


@pytest.mark.parametrize(("tokens", "hidden", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, tokens, hidden, dtype):
    gram, gram_cross, device = functions(route)
    x, a, b, c = (rows(tokens, width, dtype, device, seed) for seed, width in enumerate((hidden, *3 * (hidden + 2,))))
    found = gram(x)
    assert error(found, x.double().T @ x.double()) < limit(route)
    assert torch.equal(found, found.T)
    every = not INTERPRETED or (tokens, hidden) == SIZES[-1]
    for terms in ((a,), (a, b), (a, b, c)) if every else ((a, b, c),):
        assert_sums(gram_cross(x, terms), expected_sums(x, terms), route)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("route", ROUTES)
def test_a_term_may_be_x_itself(route, place):
    _, gram_cross, device = functions(route)
    x, *others = (rows(ROWS, 40, torch.bfloat16, device, seed) for seed in range(3))
    terms = (*others[:place], x, *others[place:])
    assert_sums(gram_cross(x, terms), expected_sums(x, terms), route)


@pytest.mark.skipif(not INTERPRETED, reason="counts passes of the kernels")
def test_a_term_that_is_x_is_read_once(monkeypatch):
    x, other = (rows(70, 40, torch.float16, "cpu", seed) for seed in range(2))
    form, asked = kernels.parts.form, []
    monkeypatch.setattr(kernels.parts, "form", lambda *given: asked.append(given) or form(*given))
    kernels.gram_cross_triton(x, (other, other, x), rounded=True)
    assert len(asked) == 1


@pytest.mark.parametrize("route", ROUTES)
def test_mixed_dtypes(route):
    _, gram_cross, device = functions(route)
    x = rows(100, 33, torch.bfloat16, device)
    terms = (rows(100, 70, torch.float32, device, seed=1), rows(100, 70, torch.float16, device, seed=2))
    assert_sums(gram_cross(x, terms), expected_sums(x, terms), route)


@pytest.mark.parametrize("dtype", FEWER, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_masked_rows_are_never_used(route, dtype):
    gram, gram_cross, device = functions(route)
    x, y = rows(ROWS, WIDTH, dtype, device), rows(ROWS, WIDTH, dtype, device, seed=1)
    weights = torch.rand(ROWS, generator=torch.Generator().manual_seed(2)).to(device)
    cross_weights = torch.randn(ROWS, generator=torch.Generator().manual_seed(3)).to(device)
    mask = torch.arange(ROWS, device=device) % 3 != 0
    for poison, start in ((float("nan"), 0), (float("inf"), 3)):
        for operand in (x, y, weights, cross_weights):
            operand[start::6] = poison
    assert_sums(gram_cross(x, (y, x), mask=mask), expected_sums(x, (y, x), mask=mask), route)
    for both in ((weights, None), (weights, cross_weights), (None, cross_weights)):
        found = gram_cross(x, (y,), *both, mask)
        assert_sums(found, expected_sums(x, (y,), *both, mask), route)
    kept, w = x[mask].double(), weights[mask].double()[:, None]
    assert error(gram(x, weights, mask), (w * kept).T @ kept) < limit(route)
    assert torch.equal(gram(x, mask=torch.zeros_like(mask)).cpu(), torch.zeros(WIDTH, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("dtype", FEWER, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_huge_common_mean_and_dominant_direction(route, dtype):
    gram, gram_cross, device = functions(route)
    mean = rows(LONG, 64, dtype, device, mean=1000.0)
    direction = rows(LONG, 64, torch.float64, "cpu") + 300.0 * rows(LONG, 1, torch.float64, "cpu", seed=1)
    direction = direction.to(dtype).to(device)
    for x in (mean, direction):
        assert error(gram(x), x.double().T @ x.double()) < limit(route)
        assert_sums(gram_cross(x, (mean,)), expected_sums(x, (mean,)), route)
    weights = torch.rand(LONG, generator=torch.Generator().manual_seed(2)).to(device)
    weighted = (weights.double()[:, None] * mean.double()).T @ mean.double()
    assert error(gram(mean, weights), weighted) < limit(route)


@pytest.mark.parametrize("route", ROUTES)
def test_rounded_terms(route):
    _, gram_cross, device = functions(route)
    a, b = (rows(200, 48, torch.float16, device, seed) for seed in (1, 2))  # the interpreter cannot round to bfloat16
    x = rows(200, 48, torch.float16, device)
    r = (a.double() - b.double()).to(torch.float16)
    assert_sums(gram_cross(x, (a, b), rounded=True), expected_sums(x, (r,)), route)
    assert error(gram_cross(x, (a, b)).cross, expected_sums(x, (r,))[0].cross) > 1e-6


@pytest.mark.parametrize("route", ROUTES)
def test_strided_rows_and_out(route):
    gram, gram_cross, device = functions(route)
    base = poisoned(150, 2 * WIDTH, dtype=torch.bfloat16, device=device)
    base[::2, ::2] = rows(75, WIDTH, torch.bfloat16, device)
    x = base[::2, ::2]
    assert not x.is_contiguous()
    assert error(gram(x), x.double().T @ x.double()) < limit(route)
    assert error(gram(x.T), x.double() @ x.double().T) < limit(route)
    weights = torch.rand(75, 2, generator=torch.Generator().manual_seed(1)).to(device)[:, 0]
    mask = (torch.arange(150, device=device) % 4 == 0)[::2]
    assert_sums(gram_cross(x, (x, x), weights, None, mask), expected_sums(x, (x, x), weights, None, mask), route)

    out = kernels.Sums.zeros(WIDTH, WIDTH, device)
    for _ in range(2):
        assert gram_cross(x, (x,), out=out) is out
    assert gram(x, out=out.gram) is out.gram
    square = x.double().T @ x.double()
    assert error(out.gram, 3 * square) < limit(route) and error(out.cross, 2 * square) < limit(route)
    assert torch.equal(out.gram, out.gram.T)


@pytest.mark.parametrize("route", ROUTES)
def test_empty(route):
    gram, gram_cross, device = functions(route)
    for dtype in HALF_AND_SINGLE:
        x = torch.empty(0, 5, dtype=dtype, device=device)
        assert torch.equal(gram(x).cpu(), torch.zeros(5, 5, dtype=torch.float64))
        found = gram_cross(x, (x[:, :3],))
        assert found.cross.shape == (5, 3) and not found.energy
    out = torch.ones(5, 5, dtype=torch.float64, device=device)
    assert torch.equal(gram(x, out=out).cpu(), torch.ones(5, 5, dtype=torch.float64))
    assert gram(torch.empty(4, 0, device=device)).shape == (0, 0)


@pytest.mark.parametrize("tokens", [0, 70] if INTERPRETED else [0, 70, 200])
@pytest.mark.parametrize("route", ROUTES)
def test_new_outputs_are_written_without_being_read(route, tokens, monkeypatch):
    gram, gram_cross, device = functions(route)
    x, a = (rows(tokens, 40, torch.float16, device, seed) for seed in range(2))
    expected, mask = expected_sums(x, (a,)), torch.zeros(tokens, dtype=torch.bool, device=device)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **given: empty(*shape, **given).fill_(float("nan")))
    monkeypatch.setattr(kernels, "SLAB_ROWS", 64)
    assert_sums(gram_cross(x, (a,)), expected, route)
    assert error(gram(x), expected[0].gram) < limit(route)
    assert not gram(x, mask=mask).any()
    assert not gram_cross(x, (a,), mask=mask).cross.any()


@pytest.mark.skipif(INTERPRETED, reason="programs run one after the other in the interpreter")
@pytest.mark.parametrize("route", ROUTES)
def test_same_bits_twice(route):
    gram, gram_cross, device = functions(route)
    x, y = rows(400, 130, torch.bfloat16, device), rows(400, 64, torch.bfloat16, device, seed=1)
    assert torch.equal(gram(x), gram(x.clone()))
    first, second = gram_cross(x, (y,)), gram_cross(x.clone(), (y.clone(),))
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in vars(first))


@pytest.mark.parametrize("route", ROUTES)
def test_slabs_add_up(route, monkeypatch):
    _, gram_cross, device = functions(route)
    x, y = rows(300, 20, torch.bfloat16, device), rows(300, 20, torch.bfloat16, device, seed=1)
    mask = torch.arange(300, device=device) >= 140  # the first slab is masked altogether
    monkeypatch.setattr(kernels, "SLAB_ROWS", 128)
    monkeypatch.setattr(kernels, "REFERENCE_CHUNK_BYTES", 8 * 20 * 128)
    assert_sums(gram_cross(x, (y, x), mask=mask), expected_sums(x, (y, x), mask=mask), route)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes seconds a case")
@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 70),
    hidden=st.integers(0, 12),
    other=st.integers(0, 12),
    seed=st.integers(0, 10**6),
    chunk=st.sampled_from([8, 640, 2**20]),
)
def test_reference_is_the_sum_of_outer_products(tokens, hidden, other, seed, chunk):
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(tokens, width, generator=generator) for width in (hidden, other))
    weights = torch.rand(tokens, generator=generator)
    mask = torch.rand(tokens, generator=generator) < 0.5
    expected = torch.zeros(hidden, other, dtype=torch.float64)
    for k in range(tokens):
        if mask[k]:
            expected += weights[k].double() * torch.outer(x[k].double(), y[k].double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "REFERENCE_CHUNK_BYTES", chunk)  # so that some cases take many chunks
        found = kernels.gram_cross_reference(x, (y,), weights, mask=mask)
    assert torch.allclose(found.cross, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(INTERPRETED, reason="checked before any launch")
def test_bad_arguments_are_refused():
    x = torch.zeros(4, 3)
    bad = [
        {"x": torch.zeros(4)},
        {"x": torch.zeros(4, 3, dtype=torch.int64)},
        {"x": x, "weights": torch.zeros(3)},
        {"x": x, "weights": torch.ones(4, dtype=torch.int64)},
        {"x": x, "weights": torch.tensor([1.0, 1.0, -1.0, 1.0])},
        {"x": x, "mask": torch.ones(4)},
        {"x": x, "mask": torch.ones(5, dtype=torch.bool)},
        {"x": x, "out": torch.zeros(3, 3)},
        {"x": x, "out": torch.zeros(3, 4, dtype=torch.float64)},
        {"x": x, "out": torch.zeros(3, 6, dtype=torch.float64)[:, ::2]},
        {"x": x, "mask": torch.ones(4, dtype=torch.bool, device="meta")},
    ]
    for arguments in bad:
        with pytest.raises(ReplaceMeError, match=r"^gram: "):
            kernels.gram(**arguments)
    worse = [
        {"terms": ()},
        {"terms": (x,) * 4},
        {"terms": (torch.zeros(5, 3),)},
        {"terms": (x, torch.zeros(4, 2))},
        {"terms": (x.long(),)},
        {"terms": (x,), "cross_weights": torch.zeros(3)},
        {"terms": (x,), "out": kernels.Sums.zeros(3, 4)},
    ]
    for arguments in worse:
        with pytest.raises(ReplaceMeError, match=r"^gram: "):
            kernels.gram_cross(x, **arguments)
    ignored = torch.tensor([1.0, 1.0, -1.0, 1.0])
    assert kernels.gram(x, ignored, ignored > 0).shape == (3, 3)  # a negative weight of a masked row does not matter


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("hidden", [640, 2048, 2112, 3583])
def test_real_sizes_on_a_gpu(hidden, dtype):
    torch.manual_seed(0)
    x = (torch.randn(8192, hidden, device="cuda") + 3.0).to(dtype)
    a, b = (torch.randn(8192, hidden, device="cuda").to(dtype) for _ in range(2))
    mask = torch.rand(8192, device="cuda") < 0.9
    x[~mask] = float("nan")
    assert_sums(kernels.gram_cross(x, (a, b, x), mask=mask), expected_sums(x, (a, b, x), mask=mask), "cuda")


@pytest.mark.gpu
def test_bfloat16_terms_are_rounded_to_nearest_on_a_gpu():
    x, a, b = (rows(3000, 512, torch.bfloat16, "cuda", seed) for seed in range(3))
    r = (a.double() - b.double()).bfloat16()
    assert_sums(kernels.gram_cross(x, (a, b), rounded=True), expected_sums(x, (r,)), "cuda")


@pytest.mark.gpu
def test_the_portable_kernel_on_a_gpu(monkeypatch):
    """What GPUs before and after Hopper run."""
    hopper = importlib.import_module("replaceme.kernels.products_hopper")
    monkeypatch.setattr(hopper, "serves", lambda products: False)
    for hidden, dtype in ((640, torch.bfloat16), (2049, torch.bfloat16), (1100, torch.float16), (500, torch.float32)):
        x, a = rows(5000, hidden, dtype, "cuda"), rows(5000, hidden, dtype, "cuda", seed=1)
        mask = torch.arange(5000, device="cuda") % 7 != 0
        assert_sums(kernels.gram_cross(x, (a, x), mask=mask), expected_sums(x, (a, x), mask=mask), "cuda")


@pytest.mark.gpu
def test_hopper_gpus_take_the_hopper_path(monkeypatch):
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("not a Hopper GPU")
    hopper, taken = importlib.import_module("replaceme.kernels.products_hopper"), []
    monkeypatch.setattr(hopper, "add_products", taken.append)
    kernels.gram(rows(100, 64, torch.bfloat16, "cuda"))
    assert len(taken) == 1


@pytest.mark.gpu
def test_a_million_rows_on_a_gpu():
    torch.manual_seed(0)
    for mean in (0.0, 1000.0):
        x = (torch.randn(2**20, 128, device="cuda") + mean).bfloat16()
        assert error(kernels.gram(x), kernels.gram_reference(x).cpu()) < 1e-6
    x = torch.randn(2**20, 1024, device="cuda").bfloat16()
    assert error(kernels.gram(x), kernels.gram_reference(x).cpu()) < 1e-6


@pytest.mark.gpu
def test_the_same_run_of_rows_again_and_again_on_a_gpu():
    """Rounding to nearest has one direction when every addend is the same: the reason for FLUSH_ROWS."""
    torch.manual_seed(0)
    x = (torch.randn(128, 512, device="cuda") + 3).bfloat16().repeat(512, 1)
    assert error(kernels.gram(x), kernels.gram_reference(x).cpu()) < 1e-6


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements_on_a_gpu():
    x = torch.randn(2**19 + 77, 4104, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    expected = sum(part.double().T @ part.double() for part in x.split(2**16))
    assert error(kernels.gram(x), expected.cpu()) < 1e-6
    mask = torch.zeros(len(x), dtype=torch.bool, device="cuda")
    mask[-100:] = True
    assert_sums(kernels.gram_cross(x, (x,), mask=mask), expected_sums(x[-100:], (x[-100:],)), "cuda")


@pytest.mark.gpu
def test_float64_on_a_gpu_goes_through_the_reference():
    x = rows(300, 65, torch.float64, "cuda")
    assert error(kernels.gram(x), (x.T @ x).cpu()) < 1e-14
