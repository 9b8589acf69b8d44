"""Distances of all pairs of states against float64: the torch reference, the kernel interpreted, and on a GPU."""

import importlib
import math
import os

import pytest
import torch

from replaceme.core.errors import ReplaceMeError

kernels = importlib.import_module("replaceme.kernels.pairwise_cosine")  # also where the package exports the function

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HALF_AND_SINGLE = [torch.bfloat16, torch.float16, torch.float32]
ROUTES = ["triton"] if INTERPRETED else ["reference", pytest.param("cuda", marks=pytest.mark.gpu)]
TOKENS = 9 if INTERPRETED else 63
SIZES = [(1, TOKENS, 5), (3, TOKENS, 65), (16, 1, 640), (33, 2, 640), (80, 1, 65)]
# the interpreter takes seconds a case: every type at one size, every size in one type
CASES = [
    (*size, dtype)
    for size in SIZES
    for dtype in HALF_AND_SINGLE
    if not INTERPRETED or size == SIZES[1] or dtype is torch.float32
]
FEWER = [torch.bfloat16] if INTERPRETED else HALF_AND_SINGLE


def function(route):
    """Return (pairwise_cosine, device) of a route; "cuda" goes through the dispatch."""
    if route == "cuda":
        return kernels.pairwise_cosine, "cuda"
    return getattr(kernels, f"pairwise_cosine_{route}"), "cpu"


def limits(route):
    """Return absolute errors allowed, of cosine and of angular, for states that are not nearly parallel."""
    return (1e-12, 1e-12) if route == "reference" else (1e-6, 1e-6)


def random_states(count, tokens, hidden, dtype=torch.bfloat16, device="cpu", seed=0):
    """Return a residual stream: each state is the last one plus some."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(count, tokens, hidden, generator=generator, dtype=torch.float64)
    return [state.to(dtype).to(device) for state in steps.cumsum(0)]


def naive(states, mask=None):
    """Return both matrices by the definition, one pair at a time."""
    rows = [state.cpu().double() if mask is None else state.cpu()[mask.cpu()].double() for state in states]
    found = torch.zeros(2, len(rows), len(rows), dtype=torch.float64)
    for i, left in enumerate(rows):
        for j, right in enumerate(rows):
            if i != j:
                cosine = ((left * right).sum(1) / left.norm(dim=1) / right.norm(dim=1)).clamp(-1, 1)
                found[0, i, j], found[1, i, j] = (1 - cosine).mean(), cosine.arccos().mean() / math.pi
    return found


def check(found, expected, route):
    for matrix, exact, limit in zip(found, expected, limits(route), strict=True):
        assert matrix.dtype == torch.float64
        assert (matrix.cpu() - exact).abs().max() < limit
        assert torch.equal(matrix, matrix.T)
        assert (matrix.diagonal() == 0).all()


@pytest.mark.parametrize(("count", "tokens", "hidden", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_matches_float64(route, count, tokens, hidden, dtype):
    pairwise, device = function(route)
    states = random_states(count, tokens, hidden, dtype, device)
    check(pairwise(states), naive(states), route)


@pytest.mark.parametrize("tokens_at_once", [1, 7])
def test_chunks_of_the_reference_change_nothing(tokens_at_once, monkeypatch):
    states = random_states(3, 63, 65)
    monkeypatch.setattr(kernels, "REFERENCE_CHUNK_BYTES", tokens_at_once * 8 * 3 * 65)
    check(kernels.pairwise_cosine(states), naive(states), "reference")


@pytest.mark.skipif(not INTERPRETED, reason="the kernel's partition")
def test_many_tokens_of_one_program(monkeypatch):
    monkeypatch.setattr(kernels, "FEW", kernels.Configuration(64, warps=1, stages=1, programs=5))
    monkeypatch.setattr(kernels, "PAIRS_PER_WARP", 256)  # several blocks of pairs, the last one not full
    states = random_states(33, 13, 65, torch.float16)
    mask = torch.arange(13) % 4 != 1
    check(kernels.pairwise_cosine_triton(states, mask), naive(states, mask), "triton")


@pytest.mark.parametrize("dtype", FEWER, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_masked_rows_are_never_read(route, dtype):
    pairwise, device = function(route)
    states = random_states(5, TOKENS, 65, dtype, device)
    mask = torch.arange(TOKENS, device=device) % 3 != 0
    expected = naive(states, mask)
    for state in states:
        state[~mask] = float("nan")
    check(pairwise(states, mask), expected, route)
    spread = torch.zeros(2 * TOKENS, dtype=torch.bool, device=device)
    spread[::2] = mask
    check(pairwise(states, spread[::2]), expected, route)
    for nothing in pairwise(states, torch.zeros_like(mask)):
        assert torch.equal(nothing.cpu(), torch.zeros(5, 5, dtype=torch.float64))


@pytest.mark.parametrize("route", ROUTES)
def test_rows_beside_the_states_are_never_read(route):
    pairwise, device = function(route)
    base = torch.full((3, 40, 200), float("nan"), dtype=torch.bfloat16, device=device)
    views = [base[0, 5:25, 8:72], base[2, ::2, 3:67], base[1, 20:, 100:164]]  # of three offsets and two row strides
    states = random_states(3, 20, 64, device=device)
    for view, state in zip(views, states, strict=True):
        view.copy_(state)
    check(pairwise(views), naive(states), route)


@pytest.mark.parametrize("route", ROUTES)
def test_stack_views_and_columns_apart(route):
    pairwise, device = function(route)
    states = random_states(4, 5, 40, torch.float16, device)
    expected = naive(states)
    stack = torch.stack(states)
    check(pairwise(stack), expected, route)
    check(pairwise(tuple(states)), expected, route)
    check(pairwise(torch.stack(states, 1).transpose(0, 1)), expected, route)
    check(pairwise(stack.mT.contiguous().mT), expected, route)  # columns 5 apart: copied
    reverse = pairwise(stack.flip(0).unbind()[::-1])  # places before the first state
    check(reverse, expected, route)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_identical_opposite_and_nearly_identical_states(route, dtype):
    pairwise, device = function(route)
    state = random_states(1, TOKENS, 320, dtype, device)[0]
    near = (state.double() + 0.05 * random_states(1, TOKENS, 320, torch.float64, device, seed=1)[0]).to(dtype)
    states = [state, state.clone(), -state, near]
    cosine, angular = (matrix.cpu() for matrix in pairwise(states))
    assert cosine[0, 1].abs() < 1e-12 and angular[0, 1] < 1e-6
    assert (cosine[0, 2] - 2).abs() < 1e-6 and (angular[0, 2] - 1).abs() < 1e-6
    exact = naive(states)
    assert exact[1, 0, 3] < 0.02
    assert (cosine - exact[0]).abs().max() < 1e-6
    assert (angular - exact[1])[:, 3].abs().max() < 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_zero_vectors_scales_and_nan(route):
    pairwise, device = function(route)
    states = random_states(3, 4, 24, torch.float32, device)
    expected = naive(states)
    scaled = [1e-6 * states[0], 1e6 * states[1], states[2]]
    for found, exact in zip(pairwise(scaled), expected, strict=True):
        assert (found.cpu() - exact).abs().max() < 1e-6
    zeros = [torch.zeros_like(states[0]), states[1], torch.zeros_like(states[0])]
    for found, at in zip(pairwise(zeros), (1.0, 0.5), strict=True):
        exact = at * (1 - torch.eye(3, dtype=torch.float64))
        assert (found.cpu() - exact).abs().max() < 1e-6
    states[2][1, 3] = float("nan")
    for found, exact in zip(pairwise(states), expected, strict=True):
        assert found.cpu()[2, :2].isnan().all()
        assert (found.cpu() - exact)[:2, :2].abs().max() < 1e-6


@pytest.mark.parametrize("route", ROUTES)
def test_no_tokens_and_no_columns(route):
    pairwise, device = function(route)
    for matrix, at in zip(pairwise(torch.zeros(3, 4, 0, device=device)), (1.0, 0.5), strict=True):
        exact = at * (1 - torch.eye(3, dtype=torch.float64))  # as zero vectors
        assert (matrix.cpu() - exact).abs().max() < 1e-6
    for matrix in pairwise(torch.zeros(3, 0, 8, dtype=torch.bfloat16, device=device)):
        assert torch.equal(matrix.cpu(), torch.zeros(3, 3, dtype=torch.float64))


@pytest.mark.skipif(INTERPRETED, reason="programs run one after the other in the interpreter")
@pytest.mark.parametrize("route", ROUTES)
def test_same_bits_twice(route):
    pairwise, device = function(route)
    states = random_states(33, 9, 640, device=device)
    apart = [torch.cat([state, state])[9:] for state in states]  # elsewhere in memory
    for first, second in zip(pairwise(states), pairwise(apart), strict=True):
        assert torch.equal(first, second)


def test_bad_arguments_are_refused():
    x = torch.zeros(4, 3)
    bad = [
        {"hidden": []},
        {"hidden": torch.zeros(0, 4, 3)},
        {"hidden": x},
        {"hidden": [torch.zeros(4)]},
        {"hidden": [x.long()]},
        {"hidden": [x, torch.zeros(4, 4)]},
        {"hidden": [x, x.half()]},
        {"hidden": [x, x.to("meta")]},
        {"hidden": [x, x], "mask": torch.ones(4)},
        {"hidden": [x, x], "mask": torch.ones(5, dtype=torch.bool)},
        {"hidden": [x, x], "mask": torch.ones(4, dtype=torch.bool, device="meta")},
    ]
    for arguments in bad:
        for pairwise in (kernels.pairwise_cosine, kernels.pairwise_cosine_reference, kernels.pairwise_cosine_triton):
            with pytest.raises(ReplaceMeError, match=r"^pairwise_cosine: [^\n]+$"):
                pairwise(**arguments)
    with pytest.raises(ReplaceMeError, match=r"state 1 must be float32 \[4, 3\] as state 0, got float16"):
        kernels.pairwise_cosine([x, x.half()])
    for outside in (torch.zeros(2, 4, 3, dtype=torch.float64), torch.zeros(129, 1, 3)):
        with pytest.raises(ReplaceMeError, match=r"^pairwise_cosine: the kernel takes"):
            kernels.pairwise_cosine_triton(outside)


def test_float64_and_many_states_go_through_the_reference():
    assert kernels.pairwise_cosine(torch.ones(129, 1, 3))[0].shape == (129, 129)
    states = random_states(3, 5, 6, torch.float64)
    check(kernels.pairwise_cosine(states), naive(states), "reference")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("count", "hidden"), [(28, 3584), (33, 4096), (81, 1080)])
def test_real_sizes_on_a_gpu(count, hidden, dtype):
    torch.manual_seed(0)
    steps = torch.randn(count, 2048, hidden, device="cuda")
    states = list(steps.cumsum(0).to(dtype))
    states[-1][:, 0] += 300.0  # a massive activation, as in real models
    mask = torch.rand(2048, device="cuda") < 0.9
    for state in states:
        state[~mask] = float("nan")
    expected = kernels.pairwise_cosine_reference(states, mask)
    found = kernels.pairwise_cosine(states, mask)
    assert (found[0] - expected[0]).abs().max() < 1e-6
    assert (found[1] - expected[1]).abs().max() < 2e-6
    again = kernels.pairwise_cosine([state.clone() for state in states], mask)
    assert all(torch.equal(one, two) and torch.equal(one, one.T) for one, two in zip(found, again, strict=True))


@pytest.mark.gpu
def test_float64_on_a_gpu_goes_through_the_reference():
    states = random_states(3, 70, 65, torch.float64, "cuda")
    check(kernels.pairwise_cosine(states), naive(states), "reference")
