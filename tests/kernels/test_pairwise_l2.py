"""Lengths of the differences of all pairs of states against float64: reference, kernel interpreted, and on a GPU."""

import os

import pytest
import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.kernels import pairwise_l2 as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_AND_SINGLE = [torch.bfloat16, torch.float16, torch.float32]
ROUTES = ["triton"] if INTERPRETED else ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
TOKENS = 9 if INTERPRETED else 63
SIZES = [(1, TOKENS, 5), (3, TOKENS, 65), (17, 2, 640), (40, 3, 64)]
# the interpreter takes seconds a case: every type at one size, every size in one type
CASES = [
    (*size, dtype)
    for size in SIZES
    for dtype in HALF_AND_SINGLE
    if not INTERPRETED or size == SIZES[1] or dtype is torch.float32
]


def function(route):
    if route == "cuda":
        return kernels.pairwise_l2, "cuda"
    return getattr(kernels, f"pairwise_l2_{route}"), "cpu"


def random_states(count, tokens, hidden, dtype, device, step=1.0):
    generator = torch.Generator().manual_seed(0)
    steps = step * torch.randn(count, tokens, hidden, generator=generator, dtype=torch.float64)
    steps[0] /= step
    return [state.to(dtype).to(device) for state in steps.cumsum(0)]


def expected(states, mask=None):
    rows = torch.stack([state.cpu().double() for state in states])
    rows = rows if mask is None else rows[:, mask.cpu()]
    return (rows[:, None] - rows).norm(dim=-1).mean(-1)


def check(found, exact):
    assert found.dtype == torch.float64 and torch.equal(found, found.T) and (found.diagonal() == 0).all()
    assert (found.cpu() - exact).abs().max() <= 1e-6 * exact.max().clamp(min=1e-30)


@pytest.mark.parametrize(("count", "tokens", "hidden", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, count, tokens, hidden, dtype):
    pairwise, device = function(route)
    states = random_states(count, tokens, hidden, dtype, device)
    check(pairwise(states), expected(states))


@pytest.mark.parametrize("route", ROUTES)
def test_neighbours_that_hardly_differ_do_not_cancel(route):
    pairwise, device = function(route)
    states = random_states(3, 9, 64, torch.float32, device, step=1e-5)
    check(pairwise(states), expected(states))


@pytest.mark.parametrize("route", ROUTES)
def test_masked_tokens_are_not_read_and_no_token_gives_zeros(route):
    pairwise, device = function(route)
    states = random_states(5, TOKENS, 65, torch.bfloat16, device)
    mask = torch.arange(TOKENS, device=device) % 3 == 0
    for state in states:
        state[~mask] = torch.nan
    check(pairwise(states, mask), expected(states, mask))
    assert (pairwise(states, torch.zeros_like(mask)) == 0).all()


@pytest.mark.parametrize("route", ROUTES)
def test_strided_states_and_the_same_bits(route):
    pairwise, device = function(route)
    whole = torch.stack(random_states(4, 2000 if route == "cuda" else 20, 96, torch.float16, device))
    states = [state[:, 3:91:2] for state in whole]
    found = pairwise(states)
    check(found, expected(states))
    if not INTERPRETED:  # where programs run one after the other
        assert torch.equal(found, pairwise(states))


@pytest.mark.parametrize("route", ROUTES)
def test_nan_shows(route):
    pairwise, device = function(route)
    states = random_states(3, 9, 64, torch.float32, device)
    states[1][2, 3] = torch.nan
    found = pairwise(states)
    assert found[1, 0].isnan() and found[2, 0].isfinite()


def test_wrong_arguments(refuses):
    with refuses("pairwise_l2: at least one state"):
        kernels.pairwise_l2([])
    with refuses("pairwise_l2: the kernel takes states of at most 32 bits"):
        kernels.pairwise_l2_triton([torch.zeros(2, 2, dtype=torch.float64)])
    with pytest.raises(ReplaceMeError, match="mask must be 2 bools"):
        kernels.pairwise_l2([torch.zeros(2, 2)], torch.ones(3, dtype=torch.bool))
