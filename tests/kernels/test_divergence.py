"""Divergences of logits and their gradients against float64: reference, kernel interpreted, and on a GPU."""

import os

import pytest
import torch

from replaceme.kernels import divergence as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROUTES = ["triton"] if INTERPRETED else ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
TYPES = [torch.bfloat16, torch.float16, torch.float32]
SIZES = [(1, 1), (3, 5), (4, 4096), (2, 9001)]
CASES = [(*size, dtype) for size in SIZES for dtype in TYPES if not INTERPRETED or dtype is TYPES[size[0] % 3]]


def function(route):
    if route == "cuda":
        return kernels.divergence, "cuda"
    return getattr(kernels, f"divergence_{route}"), "cpu"


def logits(tokens, columns, dtype, device, step=1.0):
    generator = torch.Generator().manual_seed(0)
    p = 4 * torch.randn(tokens, columns, generator=generator)
    q = p + step * torch.randn(tokens, columns, generator=generator)
    return p.to(dtype).to(device), q.to(dtype).to(device)


def expected(p, q, weight):
    """Values and gradient by autograd in float64."""
    p, q = p.cpu().double(), q.cpu().double().requires_grad_()
    values = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1)
    (weight * values.sum()).backward()
    return values.detach(), q.grad


@pytest.mark.parametrize(("tokens", "columns", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, tokens, columns, dtype):
    compared, device = function(route)
    p, q = logits(tokens, columns, dtype, device)
    values, gradient = compared(p, q, 0.25)
    exact, slope = expected(p, q, 0.25)
    assert values.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(values.cpu().double(), exact, rtol=1e-5, atol=1e-6)
    rounding = max(1e-5, torch.finfo(dtype).eps)
    assert (gradient.cpu().double() - slope).abs().max() <= rounding * slope.abs().max() + 1e-7
    alone, none = compared(p, q)
    assert torch.equal(alone, values) and none is None


@pytest.mark.parametrize("route", ROUTES)
def test_equal_models_that_never_say_a_word_and_nan(route):
    compared, device = function(route)
    p, _ = logits(3, 7, torch.float32, device)
    p[0, 2] = -torch.inf
    p[2, 1] = torch.nan
    q = p.clone()
    q[1, 3] = -torch.inf
    values, gradient = compared(p, q, 1.0)
    assert values[0] == 0 and (gradient[0] == 0).all()
    likely = p[1].softmax(-1)[3]
    assert 9000 * likely < values[1] < 11000 * likely, "what q never says counts, finitely"
    assert values[2].isnan()


@pytest.mark.parametrize("route", ROUTES)
def test_rows_apart_in_memory_and_none(route):
    compared, device = function(route)
    p, q = logits(6, 33, torch.float32, device)
    whole = compared(p, q, 2.0)
    for one, other in zip(compared(p[::2], q[::2], 2.0), whole, strict=True):
        assert torch.equal(one, other[::2])
    values, gradient = compared(p.T[:, :4], q.T[:, :4], 1.0)
    assert torch.equal(values, compared(p.T[:, :4].contiguous(), q.T[:, :4].contiguous(), 1.0)[0])
    values, gradient = compared(p[:0], q[:0], 1.0)
    assert values.shape == (0,) and gradient.shape == (0, 33)


def test_wrong_arguments(refuses):
    for p, q in ((torch.zeros(2, 3), torch.zeros(2, 4)), (torch.zeros(3), torch.zeros(3)), (torch.zeros(2, 0),) * 2):
        with refuses("divergence: two tensors of logits"):
            kernels.divergence(p, q)
    with refuses("divergence: the kernel takes logits of at most 32 bits"):
        kernels.divergence_triton(*(torch.zeros(2, 2, dtype=torch.float64),) * 2)
