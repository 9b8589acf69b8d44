"""Row products against float64: the torch reference, the Triton kernel interpreted, and both kernels on a GPU."""

import math
import os

import pytest
import torch

from replaceme.kernels import row_cosine as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU_ROUTES = ["cuda", "portable"]
ROUTES = (
    ["triton"] if INTERPRETED else ["reference", *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU_ROUTES)]
)
HALF_AND_SINGLE = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [
    (1, 5, 3),
    (63, 65, 130),
    (130, 320 if INTERPRETED else 640, 65),
    (130, 64, 264),
]  # the last one may take the Hopper path
# the interpreter takes seconds a case: every type at one size, every size in one type
CASES = [
    (*size, dtype)
    for size in SIZES
    for dtype in HALF_AND_SINGLE
    if not INTERPRETED or size == SIZES[1] or dtype is torch.float32
]


def function(route):
    """Return (row_cosine, device) of a route; "cuda" goes through the dispatch, "portable" does not take the Hopper
    path.
    """
    if route == "cuda":
        return kernels.row_cosine, "cuda"
    if route == "portable":
        return kernels.row_cosine_triton, "cuda"
    return getattr(kernels, f"row_cosine_{route}"), "cpu"


def limit(route):
    """Return error allowed, relative to |p| |r|, |p| or |r|: float32 results, and one float32 accumulation in the
    kernels.
    """
    return 1e-6 if route == "reference" else 1e-4


def rows(tokens, columns, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, columns, generator=generator, dtype=torch.float64).to(dtype).to(device)


def expected(x, t, terms, y=None):
    """Return (dot, |p|, |r|) by the formula, float64 on the CPU."""
    x, t, *terms = (operand.double().cpu() for operand in (x, t, *terms))
    p = x @ t if y is None else x @ t + y.double().cpu()
    r = terms[0]
    if len(terms) > 1:
        r = r - terms[1]
    if len(terms) > 2:
        r = r + terms[2]
    return (p * r).sum(1), (p * p).sum(1).sqrt(), (r * r).sum(1).sqrt()


def error(found, wanted):
    """Return largest error over the rows, of the dot against |p| |r| and of the norms against themselves."""
    assert all(part.dtype == torch.float32 for part in found)
    dot, norm_p, norm_r = (part.double().cpu() for part in found)
    scales = (wanted[1] * wanted[2], wanted[1], wanted[2])
    errors = [(a - b).abs() / s for a, b, s in zip((dot, norm_p, norm_r), wanted, scales, strict=True)]
    worst = torch.stack(errors).max()
    assert not worst.isnan()
    return float(worst)


def operands(tokens, hidden, other, dtype, device, count):
    """Return (x, t, terms): t of norm about 1 a column, terms that have something in common with p."""
    x, t = rows(tokens, hidden, dtype, device), rows(hidden, other, torch.float64, seed=1) / math.sqrt(hidden)
    t = t.to(dtype).to(device)
    first = (x.double() @ t.double()).to(dtype) + rows(tokens, other, dtype, device, seed=2)
    return x, t, (first, *(rows(tokens, other, dtype, device, seed=3 + k) for k in range(count - 1)))


@pytest.mark.parametrize(("tokens", "hidden", "other", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, tokens, hidden, other, dtype):
    row_cosine, device = function(route)
    every = not INTERPRETED or (tokens, hidden, other) == SIZES[0]
    for count in (1, 2, 3) if every else (3,):
        x, t, terms = operands(tokens, hidden, other, dtype, device, count)
        found = row_cosine(x, t, terms)
        assert isinstance(found, kernels.RowCosine)
        assert all(part.shape == (tokens,) for part in found)
        assert error(found, expected(x, t, terms)) < limit(route)
    y = rows(tokens, other, dtype, device, seed=9)
    assert error(row_cosine(x, t, terms, y), expected(x, t, terms, y)) < limit(route)


@pytest.mark.parametrize("route", ROUTES)
def test_mixed_dtypes(route):
    row_cosine, device = function(route)
    x, t, (a, b, c) = operands(70, 64, 136, torch.bfloat16, device, 3)
    y = rows(70, 136, torch.float16, device, seed=9)
    for terms in ((a.float(), b, c.half()), (a.half(), b.float())):
        assert error(row_cosine(x, t, terms, y), expected(x, t, terms, y)) < limit(route)
        assert error(row_cosine(x, t, terms, y.float()), expected(x, t, terms, y)) < limit(route)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_wide_transform_is_not_rounded_to_the_dtype_of_x(route, wide, dtype):
    row_cosine, device = function(route)
    for hidden, other in ((40, 30), (128, 264)):
        x, t, terms = operands(66, hidden, other, dtype, device, 1)
        t = (rows(hidden, other, torch.float64, seed=1) / math.sqrt(hidden)).to(wide).to(device)
        wanted = expected(x, t, terms)
        assert error(row_cosine(x, t, terms), wanted) < max(limit(route), 0 if route == "reference" else 3e-5)
        if dtype == torch.bfloat16:  # the check can fail
            assert error(row_cosine(x, t.to(dtype), terms), wanted) > 3e-4


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_masked_rows_are_never_used(route, dtype):
    row_cosine, device = function(route)
    x, t, terms = operands(131, 64, 72, dtype, device, 2)
    y = rows(131, 72, dtype, device, seed=9)
    mask = torch.arange(131, device=device) % 3 != 0
    for poison in (float("nan"), float("inf")):
        for operand in (x, y, *terms):
            operand[~mask] = poison
        found = row_cosine(x, t, terms, y, mask)
        wanted = expected(x[mask], t, [term[mask] for term in terms], y[mask])
        assert error([part[mask] for part in found], wanted) < limit(route)
        assert all(torch.equal(part[~mask].cpu(), torch.zeros(44)) for part in found)
    strided = torch.zeros(262, dtype=torch.bool, device=device)
    strided[::2] = mask
    again = row_cosine(x, t, terms, y, strided[::2])
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))


@pytest.mark.parametrize("route", ROUTES)
def test_strided_operands(route):
    row_cosine, device = function(route)
    base = torch.full((150, 400), float("nan"), dtype=torch.bfloat16, device=device)
    x, t, terms = operands(75, 64, 72, torch.bfloat16, device, 1)
    base[::2, :128:2], base[1::2, :72] = x, terms[0]
    assert error(row_cosine(base[::2, :128:2], t, (base[1::2, :72],)), expected(x, t, terms)) < limit(route)
    assert error(row_cosine(x, t.T.contiguous().T, terms), expected(x, t, terms)) < limit(route)
    base[:75, 8:72], base[:75, 200:272] = x, terms[0]  # aligned: the Hopper path reads it where it lies
    assert error(row_cosine(base[:75, 8:72], t, (base[:75, 200:272],)), expected(x, t, terms)) < limit(route)
    base[:75, 9:73], base[:75, 201:273] = x, terms[0]  # not aligned
    assert error(row_cosine(base[:75, 9:73], t, (base[:75, 201:273],)), expected(x, t, terms)) < limit(route)


@pytest.mark.parametrize("route", ROUTES)
def test_empty(route):
    row_cosine, device = function(route)
    for dtype in HALF_AND_SINGLE:
        x, t, terms = operands(0, 5, 7, dtype, device, 3)
        assert all(part.shape == (0,) and part.dtype == torch.float32 for part in row_cosine(x, t, terms))
        x = torch.ones(4, 5, dtype=dtype, device=device)
        nothing = row_cosine(x, t[:, :0], (x[:, :0],))
        assert all(torch.equal(part.cpu(), torch.zeros(4)) for part in nothing)
        y = rows(4, 5, dtype, device)
        found = row_cosine(x[:, :0], x[:0], (x,), y)  # no hidden columns: p is y
        assert error(found, expected(x[:, :0], x[:0], (x,), y)) < limit(route)


@pytest.mark.skipif(INTERPRETED, reason="programs run one after the other in the interpreter")
@pytest.mark.parametrize("route", ROUTES)
def test_same_bits_twice(route):
    row_cosine, device = function(route)
    x, t, terms = operands(200, 128, 520, torch.bfloat16, device, 3)
    for first, second in zip(row_cosine(x, t, terms), row_cosine(x.clone(), t.clone(), terms), strict=True):
        assert torch.equal(first, second)


@pytest.mark.skipif(INTERPRETED, reason="the reference does not depend on the interpreter")
@pytest.mark.parametrize("chunk", [8, 2**14])
def test_reference_in_chunks(chunk, monkeypatch):
    x, t, terms = operands(100, 20, 30, torch.float64, "cpu", 2)
    mask = torch.arange(100) % 4 != 1
    whole = kernels.row_cosine(x, t, terms, mask=mask)
    monkeypatch.setattr(kernels, "REFERENCE_CHUNK_BYTES", chunk)
    parts = kernels.row_cosine_reference(x, t, terms, mask=mask)
    assert all(torch.allclose(a, b, rtol=1e-6, atol=0) for a, b in zip(whole, parts, strict=True))
    assert error([part[mask] for part in parts], expected(x[mask], t, [term[mask] for term in terms])) < 1e-6


@pytest.mark.skipif(INTERPRETED, reason="checked before any launch")
def test_bad_arguments_are_refused(refuses):
    x, t, a = torch.zeros(4, 3), torch.zeros(3, 5), torch.zeros(4, 5)
    bad = {
        "x must be a matrix": {"x": torch.zeros(4)},
        "x must be a matrix of floats, got int64": {"x": x.long()},
        "t must be a matrix": {"t": t[None]},
        "x has 3 columns, t 4 rows": {"t": torch.zeros(4, 5)},
        "one to three tensors, got 0": {"terms": ()},
        "one to three tensors, got 4": {"terms": (a, a, a, a)},
        "one to three tensors, got Tensor": {"terms": a},
        "terms[1] must be floats [4, 5], got float32 [4, 4]": {"terms": (a, a[:, :4])},
        "terms[0] must be floats [4, 5], got int64": {"terms": (a.long(),)},
        "y must be floats [4, 5]": {"y": a[:3]},
        "mask must be 4 bools, got float32": {"mask": torch.ones(4)},
        "mask must be 4 bools": {"mask": torch.ones(5, dtype=torch.bool)},
        "t is on meta, x on cpu": {"t": t.to("meta")},
        "terms[0] is on meta": {"terms": (a.to("meta"),)},
        "mask is on meta": {"mask": torch.ones(4, dtype=torch.bool, device="meta")},
    }
    for message, arguments in bad.items():
        with refuses("row_cosine: ", message):
            kernels.row_cosine(**{"x": x, "t": t, "terms": (a,), **arguments})


@pytest.mark.gpu
@pytest.mark.parametrize("wide", [False, True], ids=["same", "split"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hidden", [2048, 3584])
@pytest.mark.parametrize("route", GPU_ROUTES)
def test_real_sizes_on_a_gpu(route, hidden, dtype, wide):
    """1e-4: tensor cores keep about 2^-23 of a partial sum and truncate, so `hidden` products of random sign are off by
    at most sqrt(hidden) 2^-23 = 7e-6 of |p_j| typically, ten times that with a common sign; t's lower part adds 2^-17.
    """
    row_cosine, device = function(route)
    torch.manual_seed(0)
    tokens = 4096 + 37
    x, a, b, c, y = ((torch.randn(tokens, hidden, device=device) + 0.1).to(dtype) for _ in range(5))
    t = torch.eye(hidden, device=device) + 0.01 * torch.randn(hidden, hidden, device=device)
    t = t if wide else t.to(dtype)
    mask = torch.rand(tokens, device=device) < 0.9
    for operand in (x, a, b, c, y):
        operand[~mask] = float("nan")
    reference = kernels.row_cosine_reference
    for terms in ((a,), (a, b), (a, b, c)):
        for extra in (None, y):
            found = row_cosine(x, t, terms, extra, mask)
            wanted = [part[mask].double().cpu() for part in reference(x, t, terms, extra, mask)]
            assert error([part[mask] for part in found], wanted) < 1e-4
            assert all((part[~mask] == 0).all() for part in found)
    again = row_cosine(x, t, terms, extra, mask)
    assert all(torch.equal(first, second) for first, second in zip(found, again, strict=True))


@pytest.mark.gpu
def test_float64_on_a_gpu_goes_through_the_reference():
    x, t, terms = operands(70, 33, 65, torch.float64, "cuda", 2)
    assert error(kernels.row_cosine(x, t, terms), expected(x, t, terms)) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="needs a Hopper GPU"
)
def test_hopper_gpus_take_the_hopper_path(monkeypatch):
    x, t, terms = operands(300, 64, 264, torch.bfloat16, "cuda", 2)
    monkeypatch.setattr(kernels, "_partial_sums", None)  # the portable kernel
    assert error(kernels.row_cosine(x, t, terms), expected(x, t, terms)) < 1e-4
    assert error(kernels.row_cosine(x, t.float(), terms), expected(x, t, terms)) < 1e-4
