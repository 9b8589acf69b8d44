"""Progress of long loops on stderr: a bar on a terminal, elsewhere a plain line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from replaceme.core.terminal import is_terminal

Item = TypeVar("Item")
SECONDS = 30  # between two lines in a file


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "item") -> Iterable[Item]:
    """Iterate over `items`, showing how far that is; loops that are soon done say nothing in a file."""
    return bar(items, desc=description, total=total, unit=unit)


def bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Return tqdm's bar on a terminal, and elsewhere what writes lines in its place; `options` are tqdm's."""
    if not is_terminal(sys.stderr):
        return _Lines(items, **options)
    from tqdm import tqdm

    return tqdm(items, **{"mininterval": 0.2, "dynamic_ncols": True, **options})


class _Lines:
    """The part of tqdm's bar that loops use, in lines: `gram: batch 120 of 500, 34 s`."""

    def __init__(
        self,
        items: Iterable[Any] | None = None,
        desc: str = "",
        total: int | None = None,
        unit: str = "item",
        disable: bool = False,
        **_: Any,
    ) -> None:
        self.items, self.name, self.unit, self.disable = items, desc, unit, disable
        known = total if total is not None or not hasattr(items, "__len__") else len(items)
        self.of = "" if known is None else f" of {known}"
        self.done, self.began = 0, time.monotonic()
        self.told = self.began

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.update()

    def reset(self) -> None:
        """Begin again."""
        self.done, self.began = 0, time.monotonic()

    def update(self, count: int = 1) -> None:
        """Count items as done."""
        self.done += count
        now = time.monotonic()
        if not self.disable and now - self.told >= SECONDS:
            self.told = now
            print(f"{self.name}: {self.unit} {self.done}{self.of}, {now - self.began:.0f} s", file=sys.stderr)

    def close(self) -> None:
        """End; nothing is open."""
