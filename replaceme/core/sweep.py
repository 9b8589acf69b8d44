"""Remove the temporary files that killed jobs left behind (see `files.replacing`)."""

import contextlib
import os
import time
from pathlib import Path

from replaceme.core.files import TEMPORARY, machine, remove

DAY = 86400.0  # seconds


def sweep_temporaries(folder: str | Path) -> list[Path]:
    """Remove the temporary files of killed jobs under `folder` and return their paths.

    Files of living processes stay: jobs outlive a Snakemake that was killed. Files of other machines of a cluster stay
    if they changed within a day.
    """
    stale = sorted(path for path in Path(folder).rglob(f"{TEMPORARY}*") if not _writer_lives(path))
    for path in stale:
        remove(path)
    return stale


def _writer_lives(temporary: Path) -> bool:
    of_machine, *more = temporary.name.rpartition("-")[2].split(".")
    if len(more) != 2 or not more[0].isdecimal():
        return False
    if of_machine != machine():
        return time.time() - _last_change(temporary) < DAY
    try:
        os.kill(int(more[0]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _last_change(path: Path) -> float:
    times = [0.0]
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(FileNotFoundError):  # it has got its name
            times.append(one.stat().st_mtime)
    return max(times)
