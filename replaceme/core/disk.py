"""Free space on disks, and what of it this process is going to take."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from replaceme.core.errors import ReplaceMeError

_reserved: list[tuple[int, int]] = []  # device, and bytes that a block of `reserving` is going to write there


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def free_space(folder: Path) -> int:
    """Return the free bytes of the disk of a folder, which may not exist yet, beside those that are reserved there."""
    there = existing(folder)
    reserved = sum(count for device, count in _reserved if device == there.stat().st_dev)
    return max(0, shutil.disk_usage(there).free - reserved)


def check_room(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise ReplaceMeError when the disk of a folder, which may not exist yet, has less than `needed` bytes."""
    free = free_space(folder)
    if needed > free:
        raise ReplaceMeError(f"{folder}: {what} need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; {remedy}")


@contextlib.contextmanager
def reserving(folder: Path, needed: int, what: str, remedy: str) -> Iterator[None]:
    """Check the room as `check_room` does, and count it as taken by what this process begins within the block."""
    check_room(folder, needed, what, remedy)
    taken = existing(folder).stat().st_dev, needed
    _reserved.append(taken)
    try:
        yield
    finally:
        _reserved.remove(taken)
