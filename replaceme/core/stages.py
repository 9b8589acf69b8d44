"""Seconds of the stages of a long computation, by their names."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """A clock for stages, each of which may be entered several times; `seconds` by name, in order of their ends."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time within the block for a stage."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


def rounded(seconds: float) -> str:
    """Return a time with the precision of an estimate: `8 s`, `40 s`, `15 min`, `3 h`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, float("inf"))):
        value = seconds / size
        if value < most:
            step = 1 if value < 10 else 5
            return f"{max(1, step * round(value / step))} {unit}"
    raise ValueError(f"no time: {seconds}")
