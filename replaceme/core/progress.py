"""Progress bars for long loops: to the terminal, or a line now and then to a log file."""

import sys
from collections.abc import Iterable
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], description: str, total: int | None = None, unit: str = "it") -> Iterable[Item]:
    """Iterate over `items` with a tqdm bar on stderr; in a log file the bar moves at most every 10 seconds."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(items, desc=description, total=total, unit=unit, mininterval=interval, dynamic_ncols=True)
