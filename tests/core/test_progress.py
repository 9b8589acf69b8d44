"""Progress: a bar on a terminal; plain lines, and few of them, in a file."""

import io
import sys
import types

import pytest

from replaceme.core import progress as module
from replaceme.core.progress import bar, progress


class Stream(io.StringIO):
    """A stream that says of itself whether it is a terminal."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def stderr(monkeypatch):
    def opened(terminal):
        monkeypatch.setattr(sys, "stderr", Stream(terminal))
        return sys.stderr

    monkeypatch.setenv("TERM", "xterm")
    return opened


def test_a_bar_on_a_terminal(stderr, monkeypatch):
    stream = stderr(True)
    assert list(progress(iter("abc"), "gram", 3, "batch")) == ["a", "b", "c"]
    assert "\rgram: 100%" in stream.getvalue() and "3/3" in stream.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    stream = stderr(True)
    assert list(progress("abc", "gram")) == ["a", "b", "c"] and stream.getvalue() == ""


def test_lines_now_and_then_elsewhere(stderr, monkeypatch):
    seconds = iter(range(0, 1000, 20))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    stream = stderr(False)
    assert list(progress(range(4), "gram", unit="batch")) == [0, 1, 2, 3]
    assert stream.getvalue() == "gram: batch 2 of 4, 40 s\ngram: batch 4 of 4, 80 s\n"
    stream = stderr(False)
    assert list(progress(iter("ab"), "rows")) == ["a", "b"] and stream.getvalue() == "rows: item 2, 40 s\n"


def test_loops_that_are_soon_done_say_nothing_in_a_file(stderr):
    stream = stderr(False)
    assert list(progress(range(3), "gram")) == [0, 1, 2] and stream.getvalue() == ""


def test_a_bar_that_is_moved_by_hand(stderr, monkeypatch):
    seconds = iter(range(0, 1000, 40))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    stream = stderr(False)
    for disable in (False, True):
        moved = bar(total=8, desc="requests", unit="request", disable=disable, initial=0)
        moved.update(5)
        moved.close()
    assert stream.getvalue() == "requests: request 5 of 8, 40 s\n"
