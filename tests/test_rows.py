"""Rows on disk are the rows of plain transformers, all or a uniform part of them."""

import pytest
import torch

from replaceme import rows as module
from replaceme.errors import ReplaceMeError
from replaceme.rows import Rows, write_rows

CUT = (2, 5)


@pytest.fixture
def expected(llama, make_tokens, brute_rows):
    tokens = make_tokens(samples=12)
    hidden, outputs, _ = brute_rows(llama, tokens)
    return tokens, outputs[1], hidden[4] - hidden[1] + outputs[1]


def read(rows, size=7):
    return (torch.cat(given) for given in zip(*rows.blocks(size), strict=True))


def test_all_rows_in_order(llama, blocks_of, expected, tmp_path):
    tokens, m, r = expected
    written = write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), tokens, CUT, 5, origin={"a": 1})
    opened = Rows.open(tmp_path / "rows")
    assert opened == written and opened.count == tokens.count == len(m) and opened.origin == {"a": 1}
    found_m, found_r = read(opened)
    assert found_m.dtype == found_r.dtype == torch.bfloat16
    assert torch.equal(found_m, m.to(torch.bfloat16))
    assert (found_r.double() - r).norm() < 2**-8 * r.norm()
    assert max(len(m) for m, _ in opened.blocks(7)) == 7


def test_a_uniform_part_is_always_the_same(llama, blocks_of, expected, tmp_path):
    tokens, m, _ = expected
    some = [
        write_rows(tmp_path / name, *blocks_of(llama, "float64"), tokens, CUT, size, fit_tokens=20)
        for name, size in (("one", 5), ("two", 3))
    ]
    first, second = (next(iter(read(rows))) for rows in some)
    assert len(first) == 20 and torch.equal(first, second)
    known = {tuple(row.tolist()) for row in m.to(torch.bfloat16).float()}
    assert all(tuple(row.tolist()) in known for row in first.float())
    more = write_rows(tmp_path / "more", *blocks_of(llama, "float64"), tokens, CUT, 5, fit_tokens=10**6)
    assert more.count == tokens.count


def test_a_full_disk_is_told_before_the_forward_pass(llama, blocks_of, expected, tmp_path, monkeypatch):
    tokens, _, _ = expected
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    monkeypatch.setattr(module, "capture", lambda *given: pytest.fail("a forward pass"))
    with pytest.raises(ReplaceMeError, match=r"rows need 0.0 GB, 0.0 GB are free; lower `fit_tokens`"):
        write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), tokens, CUT, 5)
    assert not (tmp_path / "rows").exists()


def test_a_truncated_part_is_refused(llama, blocks_of, expected, tmp_path):
    tokens, _, _ = expected
    rows = write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), tokens, CUT, 50)
    part = tmp_path / "rows" / rows.parts[0][0]
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ReplaceMeError, match="corrupted"):
        list(rows.blocks(7))
