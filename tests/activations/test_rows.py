"""Rows on disk are the rows of plain transformers, all or a uniform part of them."""

import pytest
import torch

from replaceme.activations import row_collector as module
from replaceme.activations import rows as stored
from replaceme.activations.row_collector import RowOptions, write_rows
from replaceme.activations.rows import Rows, store
from replaceme.config.placement import Regression
from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.transforms import streams
from replaceme.transforms.streams import Table

CUT = (2, 5)
GROUPS = [CUT]


@pytest.fixture
def expected(llama, make_tokens, brute_rows):
    tokens = make_tokens(samples=12)
    hidden, outputs, _ = brute_rows(llama, tokens)
    return tokens, outputs[1], hidden[4] - hidden[1] + outputs[1]


def read(rows, size=7):
    return (torch.cat(given) for given in zip(*rows.blocks(size), strict=True))


def test_all_rows_in_order(llama, blocks_of, expected, tmp_path):
    tokens, m, r = expected
    (written,) = write_rows(
        tmp_path / "rows", *blocks_of(llama, "float64"), tokens, GROUPS, 5, RowOptions(origin=Origin("a"))
    )
    opened = Rows.open(tmp_path / "rows" / "0")
    assert opened == written and opened.count == tokens.count == len(m) and opened.origin == Origin("a")
    found_m, found_r = read(opened)
    assert found_m.dtype == found_r.dtype == torch.bfloat16
    assert torch.equal(found_m, m.to(torch.bfloat16))
    assert (found_r.double() - r).norm() < 2**-8 * r.norm()
    assert max(len(m) for m, _ in opened.blocks(7)) == 7


def test_rows_of_several_groups_take_one_pass(llama, blocks_of, expected, tmp_path, monkeypatch):
    """Each group has the rows that it has alone."""
    tokens, groups, given = expected[0], [(1, 2), (2, 3), (4, 5)], {"with_state": True, "fit_tokens": 30}
    passes = []
    monkeypatch.setattr(module, "collect", lambda *taken, run=module.collect: passes.append(run(*taken)))
    together = write_rows(tmp_path / "all", *blocks_of(llama, "float64"), tokens, groups, 5, RowOptions(**given))
    assert len(passes) == 1
    for number, group in enumerate(groups):
        (alone,) = write_rows(
            tmp_path / str(number), *blocks_of(llama, "float64"), tokens, [group], 5, RowOptions(**given)
        )
        assert together[number].folder == tmp_path / "all" / str(number) and together[number].parts == alone.parts
        for one, other in zip(together[number].blocks(7, state=True), alone.blocks(7, state=True), strict=True):
            assert all(map(torch.equal, one, other))


def test_a_uniform_part_is_always_the_same(llama, blocks_of, expected, tmp_path):
    tokens, m, _ = expected
    some = [
        write_rows(tmp_path / name, *blocks_of(llama, "float64"), tokens, GROUPS, size, RowOptions(fit_tokens=20))[0]
        for name, size in (("one", 5), ("two", 3))
    ]
    first, second = (next(iter(read(rows))) for rows in some)
    assert len(first) == 20 and torch.equal(first, second)
    known = {tuple(row.tolist()) for row in m.to(torch.bfloat16).float()}
    assert all(tuple(row.tolist()) in known for row in first.float())
    (more,) = write_rows(
        tmp_path / "more", *blocks_of(llama, "float64"), tokens, GROUPS, 5, RowOptions(fit_tokens=10**6)
    )
    assert more.count == tokens.count


def test_the_residual_stream_comes_along(llama, blocks_of, expected, tmp_path, brute_rows):
    """State and target add up to the output of the last block that goes."""
    tokens, m, _ = expected
    hidden, _, _ = brute_rows(llama, tokens)
    (rows,) = write_rows(
        tmp_path / "rows", *blocks_of(llama, "float64"), tokens, GROUPS, 5, RowOptions(with_state=True)
    )
    assert rows.state and Rows.open(tmp_path / "rows" / "0") == rows and rows.bytes(True) == 3 * rows.count * 16 * 2
    found_m, found_r, found_y = (torch.cat(given) for given in zip(*rows.blocks(7, state=True), strict=True))
    assert torch.equal(found_y, (hidden[1] - m).to(torch.bfloat16)) and torch.equal(found_m, m.to(torch.bfloat16))
    assert (found_r.double() + found_y.double() - hidden[4]).norm() < 2**-7 * hidden[4].norm()
    assert all(len(given) == 2 for given in rows.blocks(7))


def test_rows_of_the_down_projection(llama, blocks_of, expected, tmp_path):
    """Times its weight they are the MLP's output; target and state are the same."""
    tokens, m, _ = expected
    model, family = blocks_of(llama, "float64")
    given = (model, family, tokens, GROUPS, 5)
    regression = Regression("down_proj")
    (wide,) = write_rows(tmp_path / "wide", *given, RowOptions(with_state=True, regression=regression))
    (narrow,) = write_rows(tmp_path / "narrow", *given, RowOptions(with_state=True))
    assert wide.columns == (24, 16) and wide.count == narrow.count
    (a, *rest), (_, *others) = (
        [torch.cat(x) for x in zip(*r.blocks(7, state=True), strict=True)] for r in (wide, narrow)
    )
    assert all(torch.equal(one, other) for one, other in zip(rest, others, strict=True))
    weight = family.down_projection(family.block_modules(model)[CUT[0] - 1]).weight
    assert (a.double() @ weight.T - m).norm() < 2**-7 * m.norm()


def test_rows_without_their_state_say_so(llama, blocks_of, expected, tmp_path):
    (rows,) = write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), expected[0], GROUPS, 50)
    with pytest.raises(ReplaceMeError, match=r"rows without the residual stream; make them with `rows --state`"):
        next(rows.blocks(7, state=True))


def test_rows_of_two_widths(tmp_path):
    generator = torch.Generator().manual_seed(0)
    m, r, y = (torch.randn(10, width, generator=generator).bfloat16() for width in (5, 3, 3))
    rows = store(tmp_path / "rows", [(m[:4], r[:4], y[:4]), (m[4:], r[4:], y[4:])])
    assert rows.columns == (5, 3) and rows.bytes(True) == 10 * 11 * 2 and rows.bytes(False) == 10 * 8 * 2
    table = Table(rows, "cpu", state=True)
    picked = table.take(torch.tensor([9, 0, 4, 3]))
    order = torch.tensor([0, 3, 4, 9])
    assert torch.equal(picked.m, m[order]) and torch.equal(picked.r, r[order]) and torch.equal(picked.y, y[order])
    assert table.take(torch.tensor([7])).m.equal(m[7:8]) and Table(rows, "cpu").take(order).y is None


def test_rows_written_several_parts_at_once(tmp_path, monkeypatch):
    """They are those of one writer, and what one of them cannot write is said; nothing is left of it."""
    parts = [tuple(torch.full((3, width), number).bfloat16() for width in (5, 3)) for number in range(9)]
    store(tmp_path / "rows", parts)
    monkeypatch.setattr(stored, "WRITERS", 1)
    store(tmp_path / "one", parts)
    assert (tmp_path / "rows/index.json").read_bytes() == (tmp_path / "one/index.json").read_bytes()
    assert torch.equal(next(read(Rows.open(tmp_path / "rows"))), torch.cat([m for m, _ in parts]))

    def full(path, *_):
        raise ReplaceMeError(f"{path.name}: cannot write")

    monkeypatch.setattr(stored, "WRITERS", 3)
    monkeypatch.setattr(stored, "write_safetensors", full)
    with pytest.raises(ReplaceMeError, match=r"^rows-00000.safetensors: cannot write$"):
        store(tmp_path / "none", parts)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "rows"]


def test_rows_that_a_loss_of_power_took_are_damaged(tmp_path):
    """Nobody waited for the disk, so their folder may be there without all of their bytes."""
    m = torch.ones(10, 4).bfloat16()
    rows = store(tmp_path / "rows", [(m, m.clone()), (m, m.clone())])
    part = tmp_path / "rows" / rows.parts[1][0]
    for lost in (part.read_bytes()[:100] + bytes(len(part.read_bytes()) - 100), b""):
        part.write_bytes(lost)
        with pytest.raises(DamagedError, match="does not match its SHA-256"):
            Rows.open(tmp_path / "rows")
    part.unlink()
    with pytest.raises(DamagedError, match="missing"):
        Rows.open(tmp_path / "rows")


@pytest.mark.gpu
def test_rows_of_a_gpu_are_written_as_they_were(tmp_path):
    """Parts are copied beside later work, which uses their memory again at once, and copies use that of earlier ones.

    More parts than are written at once, of different sizes.
    """

    def part(number):
        rows = torch.arange(2000 + 10 * number, device="cuda")[:, None]
        return tuple(((rows + number) % 251).expand(-1, width).bfloat16() for width in (2048, 512))

    rows = store(tmp_path / "rows", map(part, range(12)))
    rows = Rows.open(rows.folder)
    assert len(rows.parts) == 12
    for number, found in enumerate(rows.tensors()):
        assert all(torch.equal(one, wanted.cpu()) for one, wanted in zip(found, part(number), strict=True))


def test_rows_that_a_gpu_has_no_room_for_any_more_are_read_from_their_files(tmp_path, monkeypatch):
    """Another job took the room after it was measured."""
    m, r = (torch.arange(10.0 * width).reshape(10, width).bfloat16() for width in (5, 3))
    rows = store(tmp_path / "rows", [(m[:4], r[:4]), (m[4:], r[4:])])

    def full(*_):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    plain = [block.m for block in streams.row_blocks(rows, "cpu", size=3)()]
    monkeypatch.setattr(streams, "_fits", lambda *_: True)
    monkeypatch.setattr(streams, "_gathered", full)
    assert torch.equal(Table(rows, "cpu").take(torch.tensor([0, 7])).m, m[[0, 7]])
    blocks = type(rows).blocks
    monkeypatch.setattr(type(rows), "blocks", full)
    found = streams.row_blocks(rows, "cpu", size=3)
    monkeypatch.setattr(type(rows), "blocks", blocks)
    assert all(torch.equal(one.m, other) for one, other in zip(found(), plain, strict=True))


def test_a_full_disk_is_told_before_the_forward_pass(llama, blocks_of, expected, tmp_path, monkeypatch):
    tokens, _, _ = expected
    monkeypatch.setattr("replaceme.core.disk.shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    monkeypatch.setattr(module, "collect", lambda *given: pytest.fail("a forward pass"))
    with pytest.raises(ReplaceMeError, match=r"rows need 0.0 GB, 0.0 GB are free; lower `fit_tokens`"):
        write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), tokens, GROUPS, 5)
    assert not (tmp_path / "rows").exists()


def test_rows_of_one_pass_share_the_room(llama, blocks_of, expected, tmp_path, monkeypatch):
    """Each fits the disk, both do not: the second is told before the pass, and may come when the first are done."""
    model, family = blocks_of(llama, "float64")
    free = type("Usage", (), {"free": int(1.5 * expected[0].count * 16 * 2 * 2)})()
    monkeypatch.setattr("replaceme.core.disk.shutil.disk_usage", lambda path: free)
    given = (model, family, expected[0].count, GROUPS)
    rows = torch.ones(3, 16).bfloat16()
    with module.writing_rows(tmp_path / "a", *given) as (one,):
        one.parts.add((rows, rows.clone()))
        with pytest.raises(ReplaceMeError, match="rows need"), module.writing_rows(tmp_path / "b", *given):
            pytest.fail("no room")
    with module.writing_rows(tmp_path / "b", *given) as (one,):
        one.parts.add((rows, rows.clone()))


def test_a_truncated_part_is_refused(llama, blocks_of, expected, tmp_path):
    tokens, _, _ = expected
    (rows,) = write_rows(tmp_path / "rows", *blocks_of(llama, "float64"), tokens, GROUPS, 50)
    part = tmp_path / "rows" / "0" / rows.parts[0][0]
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(ReplaceMeError, match="corrupted"):
        list(rows.blocks(7))
