"""The gain of a norm behind the map against brute force over all gains."""

import pytest
import torch

from replaceme.core.errors import ReplaceMeError
from replaceme.transforms.gains import Gain
from replaceme.transforms.transform import Transform

HIDDEN = 6


def rows(tokens=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    m, noise = (torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64) for _ in range(2))
    matrix = torch.randn(HIDDEN, HIDDEN, generator=generator, dtype=torch.float64)
    return m, 3 * m @ matrix + noise, matrix


def missed(m, r, matrix, gain):
    p = m @ matrix
    n = p / p.square().mean(1, keepdim=True).sqrt()
    return float((r - gain * n).square().sum() / r.square().sum())


def with_gain(transform, blocks):
    gain = Gain(transform)
    for m, r in blocks:
        gain.add(m, r)
    return gain.transform()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_the_gain_is_the_best_one_and_the_size_of_the_map_does_not_matter(scale):
    m, r, matrix = rows()
    blocks = [(m[:200], r[:200]), (m[200:], r[200:])]
    found = with_gain(Transform(scale * matrix, {"residual": 0.5, "solver": "x"}), blocks)
    best = missed(m, r, matrix, found.gain)
    assert best < missed(m, r, matrix, 1.001 * found.gain) and best < missed(m, r, matrix, 0.999 * found.gain)
    assert found.report["residual"] == pytest.approx(best, rel=1e-4)
    assert found.report["residual_before_norm"] == 0.5 and found.report["gain"] == found.gain
    assert torch.equal(found.matrix, scale * matrix)


def test_rows_of_zeros_count_as_targets_that_are_missed():
    m, r, matrix = rows()
    m[::3] = 0
    kept = m.any(1)
    found = with_gain(Transform(matrix, {"residual": 0.5}), [(m, r)])
    assert found.gain == pytest.approx(
        with_gain(Transform(matrix, {"residual": 0.5}), [(m[kept], r[kept])]).gain, rel=1e-9
    )
    missing = float(r[~kept].square().sum()) + missed(m[kept], r[kept], matrix, found.gain) * r[kept].square().sum()
    assert found.report["residual"] == pytest.approx(float(missing / r.square().sum()), rel=1e-6)


@pytest.mark.parametrize("given", [[], [(torch.ones(4, HIDDEN), -torch.ones(4, HIDDEN))]], ids=["no rows", "away"])
def test_a_map_without_a_gain_is_refused(given):
    eye = torch.eye(HIDDEN, dtype=torch.float64)
    with pytest.raises(ReplaceMeError, match="does not point towards its target"):
        with_gain(Transform(eye, {"residual": 0.5}), given)
