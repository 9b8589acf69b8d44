"""Gram and cross products against float64: the torch reference, the Triton kernel interpreted, and on a GPU.

The interpreter is chosen when the kernel is decorated, so its tests run this same file in a second process.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from replaceme.errors import ReplaceMeError

kernels = importlib.import_module("replaceme.kernels.gram")  # the package's attribute `gram` is the function

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_AND_SINGLE = [torch.bfloat16, torch.float16, torch.float32]
ROUTES = ["triton"] if INTERPRETED else ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [(63, 65), (500, 1), (1, 63), (130, 129)] if INTERPRETED else [(63, 65), (1, 1), (500, 63), (1000, 500)]
LONG = 512 if INTERPRETED else 8192


def functions(route):
    """(gram, cross, device) of a route; "cuda" goes through the dispatch."""
    if route == "cuda":
        return kernels.gram, kernels.cross, "cuda"
    return getattr(kernels, f"gram_{route}"), getattr(kernels, f"cross_{route}"), "cpu"


def limit(route):
    """Relative Frobenius error allowed."""
    return 1e-14 if route == "reference" else 1e-6


def rows(tokens, hidden, dtype, device, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(tokens, hidden, generator=generator, dtype=torch.float64) + mean).to(dtype).to(device)


def error(found, expected):
    assert found.dtype == torch.float64
    return float((found.cpu() - expected.cpu()).norm() / expected.norm().clamp(min=1e-300))


def poisoned(*shape, dtype, device):
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("tokens", "hidden"), SIZES)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, tokens, hidden, dtype):
    gram, cross, device = functions(route)
    x, y = rows(tokens, hidden, dtype, device), rows(tokens, hidden + 2, dtype, device, seed=1)
    found = gram(x)
    assert error(found, x.double().T @ x.double()) < limit(route)
    assert torch.equal(found, found.T)
    assert error(cross(x, y), x.double().T @ y.double()) < limit(route)


@pytest.mark.parametrize("route", ROUTES)
def test_mixed_dtypes(route):
    _, cross, device = functions(route)
    x, y = rows(100, 33, torch.bfloat16, device), rows(100, 70, torch.float32, device, seed=1)
    assert error(cross(x, y), x.double().T @ y.double()) < limit(route)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_masked_rows_are_never_read(route, dtype):
    gram, cross, device = functions(route)
    x, y = rows(131, 65, dtype, device), rows(131, 65, dtype, device, seed=1)
    weights = torch.rand(131, generator=torch.Generator().manual_seed(2)).to(device)
    mask = torch.arange(131, device=device) % 3 != 0
    for poison in (float("nan"), float("inf")):
        x[~mask], y[~mask], weights[~mask] = poison, poison, poison
        kept, kept_y, kept_weights = x[mask].double(), y[mask].double(), weights[mask].double()[:, None]
        assert error(gram(x, mask=mask), kept.T @ kept) < limit(route)
        assert error(gram(x, weights, mask), (kept_weights * kept).T @ kept) < limit(route)
        assert error(cross(x, y, weights, mask), (kept_weights * kept).T @ kept_y) < limit(route)
    assert torch.equal(gram(x, mask=torch.zeros_like(mask)).cpu(), torch.zeros(65, 65, dtype=torch.float64))


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_huge_common_mean_and_dominant_direction(route, dtype):
    gram, cross, device = functions(route)
    mean = rows(LONG, 64, dtype, device, mean=1000.0)
    direction = rows(LONG, 64, torch.float64, "cpu") + 300.0 * rows(LONG, 1, torch.float64, "cpu", seed=1)
    direction = direction.to(dtype).to(device)
    for x in (mean, direction):
        assert error(gram(x), x.double().T @ x.double()) < limit(route)
        assert error(cross(x, mean), x.double().T @ mean.double()) < limit(route)
    weights = torch.rand(LONG, generator=torch.Generator().manual_seed(2)).to(device)
    weighted = (weights.double()[:, None] * mean.double()).T @ mean.double()
    assert error(gram(mean, weights), weighted) < limit(route)


@pytest.mark.parametrize("route", ROUTES)
def test_strided_rows_and_out(route):
    gram, cross, device = functions(route)
    base = poisoned(150, 140, dtype=torch.bfloat16, device=device)
    base[::2, ::2] = rows(75, 70, torch.bfloat16, device)
    x = base[::2, ::2]
    assert not x.is_contiguous()
    assert error(gram(x), x.double().T @ x.double()) < limit(route)
    assert error(gram(x.T), x.double() @ x.double().T) < limit(route)
    mask = (torch.arange(150, device=device) % 4 == 0)[::2]
    kept = x[mask].double()
    assert error(gram(x, mask=mask), kept.T @ kept) < limit(route)

    storage = poisoned(70, 140, dtype=torch.float64, device=device)
    out = storage[:, ::2].T
    out.copy_(torch.arange(70 * 70, dtype=torch.float64).view(70, 70))
    before = out.clone()
    assert cross(x, x, out=out) is out
    assert gram(x, out=out) is out
    assert error(out - before, 2 * x.double().T @ x.double()) < limit(route)
    assert storage[:, 1::2].isnan().all()


@pytest.mark.parametrize("route", ROUTES)
def test_empty(route):
    gram, cross, device = functions(route)
    for dtype in HALF_AND_SINGLE:
        x = torch.empty(0, 5, dtype=dtype, device=device)
        assert torch.equal(gram(x).cpu(), torch.zeros(5, 5, dtype=torch.float64))
        assert cross(x, x[:, :3]).shape == (5, 3)
    out = torch.ones(5, 5, dtype=torch.float64, device=device)
    assert torch.equal(gram(x, out=out).cpu(), torch.ones(5, 5, dtype=torch.float64))
    assert gram(torch.empty(4, 0, device=device)).shape == (0, 0)


@pytest.mark.parametrize("route", ROUTES)
def test_same_bits_twice(route):
    gram, cross, device = functions(route)
    x, y = rows(400, 130, torch.bfloat16, device), rows(400, 64, torch.bfloat16, device, seed=1)
    assert torch.equal(gram(x), gram(x.clone()))
    assert torch.equal(cross(x, y), cross(x.clone(), y.clone()))


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
    weights = torch.randn(tokens, generator=generator)
    mask = torch.rand(tokens, generator=generator) < 0.5
    expected = torch.zeros(hidden, other, dtype=torch.float64)
    for k in range(tokens):
        if mask[k]:
            expected += weights[k].double() * torch.outer(x[k].double(), y[k].double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "REFERENCE_CHUNK_BYTES", chunk)  # so that some cases take many chunks
        found = kernels.cross_reference(x, y, weights, mask)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(INTERPRETED, reason="checked before any launch")
def test_bad_arguments_are_refused():
    x = torch.zeros(4, 3)
    bad = [
        {"x": torch.zeros(4)},
        {"x": torch.zeros(4, 3, dtype=torch.int64)},
        {"x": x, "weights": torch.zeros(3)},
        {"x": x, "weights": torch.ones(4, dtype=torch.int64)},
        {"x": x, "mask": torch.ones(4)},
        {"x": x, "mask": torch.ones(5, dtype=torch.bool)},
        {"x": x, "out": torch.zeros(3, 3)},
        {"x": x, "out": torch.zeros(3, 4, dtype=torch.float64)},
        {"x": x, "mask": torch.ones(4, dtype=torch.bool, device="meta")},
    ]
    for arguments in bad:
        with pytest.raises(ReplaceMeError, match=r"^gram: "):
            kernels.gram(**arguments)
    with pytest.raises(ReplaceMeError, match="as many rows, got 4 and 5"):
        kernels.cross(x, torch.zeros(5, 3))


@pytest.mark.skipif(INTERPRETED, reason="would start itself")
def test_triton_kernel_in_the_interpreter():
    triton = pytest.importorskip("triton")
    if Version(triton.__version__) < Version("3.7") and Version(numpy.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton before 3.7 does not run on numpy 2.4")
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not gpu", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("hidden", [640, 2048, 2112, 3584])
def test_real_sizes_on_a_gpu(hidden, dtype):
    torch.manual_seed(0)
    x = (torch.randn(8192, hidden, device="cuda") + 3.0).to(dtype)
    y = torch.randn(8192, hidden, device="cuda").to(dtype)
    mask = torch.rand(8192, device="cuda") < 0.9
    x[~mask] = float("nan")
    kept = x[mask].double()
    found = kernels.gram(x, mask=mask)
    assert error(found, (kept.T @ kept).cpu()) < 1e-6
    assert torch.equal(found, found.T)
    assert error(kernels.cross(x, y, mask=mask), (kept.T @ y[mask].double()).cpu()) < 1e-6


@pytest.mark.gpu
def test_a_million_rows_on_a_gpu():
    torch.manual_seed(0)
    for mean in (0.0, 1000.0):
        x = (torch.randn(2**20, 128, device="cuda") + mean).bfloat16()
        assert error(kernels.gram(x), kernels.gram_reference(x).cpu()) < 1e-6


@pytest.mark.gpu
def test_float64_on_a_gpu_goes_through_the_reference():
    x = rows(300, 65, torch.float64, "cuda")
    assert error(kernels.gram(x), (x.T @ x).cpu()) < 1e-14
