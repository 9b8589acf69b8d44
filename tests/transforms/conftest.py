"""Common data of the tests of fits over rows."""

import pytest

from replaceme.transforms.resume import State


class Killed(Exception):
    """Stands for what ends a process."""


class KillsAfter(State):
    """A state whose process dies right after some number of saves, with `error`."""

    error = Killed

    def __init__(self, path, identity, saves):
        super().__init__(path, identity, seconds=0.0)
        self.saves = saves

    def write(self, content):
        super().write(content)
        self.saves -= 1
        if not self.saves:
            raise Killed


@pytest.fixture
def kills_after():
    """`kills_after(path, identity, saves)`: a state whose process dies after so many saves, by `kills_after.error`."""
    return KillsAfter
