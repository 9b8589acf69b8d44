"""The plan of units: every run of rows of every wanted tile exactly once, wherever the cuts fall."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

products = pytest.importorskip("replaceme.kernels.products")

shapes = st.builds(
    products.Shape,
    columns=st.integers(1, 700),
    others=st.integers(1, 700),
    rows=st.just(0),
    pairs=st.sampled_from([1, 3, 6]),
    symmetric=st.booleans(),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(shapes, min_size=1, max_size=2), st.integers(1, 40_000), st.integers(1, 132), st.sampled_from([1, 2]))
def test_units_cover_the_products_once(given, rows, processors, halves):
    given = [
        products.Shape(one.columns, one.columns if one.symmetric else one.others, rows, one.pairs, one.symmetric)
        for one in given
    ]
    tiling = products.Tiling(128, 128 * halves, 128, 1000, 128)
    made = products.plan.__wrapped__(tuple(given), tiling, processors, torch.device("cpu"))
    tiles, units = made.tiles.tolist(), made.units.tolist()
    runs = -(-rows // 128)
    seen, slots = Counter(), Counter()
    for product, row, column, start, count, have, slot, _ in units:
        assert tiles[slot // made.chunks] == [product, row, column, have]
        assert start % 128 == 0
        assert 0 < count * 128 <= products.FLUSH_ROWS
        seen.update((product, row, column, start // 128 + n) for n in range(count))
        slots[slot] += 1
    assert set(seen.values()) == {1}
    assert slots == Counter(range(len(tiles) * made.chunks))
    assert len(seen) == len(tiles) * runs
    for number, shape in enumerate(given):
        own = [tile for tile in tiles if tile[0] == number]
        assert len(own) == made.counts[number]
        covered = {(row // 128, column // 128 + n) for _, row, column, have in own for n in range(have)}
        wanted = {
            (i, j)
            for i in range(-(-shape.columns // 128))
            for j in range(-(-shape.others // 128))
            if not shape.symmetric or i >= j
        }
        assert wanted <= covered
