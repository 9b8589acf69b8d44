"""Runs of blocks that a model cannot do without are no candidates; only where none is left is the cut refused."""

import logging

import pytest

from replaceme.config.cuts import CutConfig
from replaceme.cuts.possible import choose_possible
from replaceme.models.checkpoints import resolve

VALUES = {(1, 2): 0.5, (2, 3): 0.1, (3, 4): 0.2, (4, 5): 0.3, (5, 6): 0.4}
ALL = [{start} for start, _ in VALUES]
LISTED = [{"start": start, "end": end, "residual": value} for (start, end), value in VALUES.items()]
LISTED += [{"start": start, "end": start + 2, "residual": 10.0 + start} for start in range(1, 5)]


@pytest.fixture
def choose(llama, monkeypatch):
    """Return a choice from LISTED of a model that cannot do without some sets of blocks."""

    def chosen(*needed, **cut):
        def fault(config, family, groups):
            gone = {block for start, end in groups for block in range(start, end)}
            return "they are needed" if any(one <= gone for one in needed) else None

        monkeypatch.setattr("replaceme.cuts.possible.fault_of", fault)
        metric = {} if "start" in cut else {"metric": "residual"}
        return choose_possible(CutConfig(**metric, **cut), resolve(str(llama)), candidates=LISTED)

    return chosen


def test_the_best_run_that_can_go_is_chosen_and_the_others_named(choose, caplog):
    caplog.set_level(logging.INFO, "replaceme.cuts.possible")
    found = choose({2}, {3}, blocks=1)
    assert found.groups == [(4, 5)] and (2, 3) not in {(one["start"], one["end"]) for one in found.candidates}
    assert caplog.messages == ["cut: no candidates are [2, 3), [3, 4): they are needed"]


@pytest.mark.parametrize("search", ["greedy", "dynamic"])
def test_several_runs(choose, search):
    assert choose({2}, {3}, {5}, blocks=2, groups=2, search=search).groups == [(1, 2), (4, 5)]


def test_nothing_is_left_or_nothing_is_free(choose, refuses):
    with refuses("cannot do without any run of so many blocks; they are needed; remove fewer"):
        choose(*ALL, blocks=1)
    with refuses("they are needed; take another cut"):
        choose({2}, blocks=1, start=2)
    with refuses("they are needed; take another cut"):  # either can go without the other
        choose({2, 3}, blocks=2, search="independent")
    for options in ({"search": "dynamic", "groups": 2}, {"search": "independent"}):
        with refuses("cannot do without any run"):
            choose(*ALL, blocks=2, **options)
