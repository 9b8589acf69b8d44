"""Find out which processes work in a folder, for the one line that a run prints where Snakemake has locked it.

Snakemake says the same at length, whether another run is under way or the last one was killed. Its lock has no owner,
so the owner is inferred from a note of the run that took it, and from the processes of this machine that work in the
folder.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

from replaceme.config.result_paths import OWN_FOLDERS
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import AHEAD, write_text
from replaceme.core.sweep import sweep_temporaries

LOGGER = logging.getLogger(__name__)
NOTE = Path(".snakemake/run.json")
LOCKED = "Directory cannot be locked"


def begin(results: str | Path, log: logging.Logger = LOGGER) -> None:
    """Prepare a workflow's start: note its machine and process, and repair what kills and clocks left in its
    results.
    """
    write_text(NOTE, json.dumps({"machine": platform.node(), "process": os.getpid()}) + "\n")
    sweep_temporaries(results)
    if number := settle_times(results):
        log.warning(
            f"{results}: {number} files were from the future, as a wrong clock leaves them; now they are of now"
        )


def check_folders(results: str | Path, models: Iterable[str]) -> None:
    """Raise ReplaceMeError, with a line for each, where a folder of the results cannot be made or written in."""
    folders = [Path(results), *(Path(results) / name for name in (*OWN_FOLDERS, *models))]
    lines = [f"{path}: {what}" for path in folders if (what := _no_folder(path))]
    if lines:
        raise ReplaceMeError("\n".join(lines))


def _no_folder(path: Path) -> str | None:
    """Return why a folder cannot be made or written in, and the remedy."""
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there; make that folder, or remove the link"
    if path.exists() and not path.is_dir():
        return "a file where results need a folder; move it away, or choose another folder with --directory"
    return None


def settle_times(results: str | Path) -> int:
    """Redate files from the future, left by a wrong clock, to now, in their order; returns their number.

    Snakemake ends a job whose input is from the future, and would for as long as it is.
    """
    now = time.time_ns()
    paths = [path for path in Path(results).rglob("*") if path.is_file()] if Path(results).is_dir() else []
    late = {path: time_of for path in paths if (time_of := path.stat().st_mtime_ns) > now + AHEAD}
    for path, time_of in late.items():
        moved = now - (max(late.values()) - time_of)
        os.utime(path, ns=(moved, moved))
    return len(late)


def told_when_locked(record: logging.LogRecord) -> bool:
    """Return a filter of Snakemake's messages that replaces the one about a lock by one line."""
    if LOCKED in record.getMessage():
        record.msg, record.args = why_locked(Path.cwd()), ()
    return True


def why_locked(folder: Path) -> str:
    """Return one line that says why a folder is locked, and the remedy."""
    runs, jobs = _at_work(folder)
    if runs:
        return (
            f"{folder}: another snakemake is at work here (process {min(runs)}); "
            "wait for its end, or choose another folder with --directory"
        )
    machine = _noted_machine(folder)
    if machine not in (None, platform.node()):
        return (
            f"{folder}: a snakemake was started here on {machine}; wait for its end, or, if it was killed, "
            "`snakemake --unlock` and run again"
        )
    if jobs:
        numbers = ", ".join(map(str, sorted(jobs)))
        return (
            f"{folder}: the last snakemake here was killed, and its jobs are still at work (processes {numbers}); "
            "let them end, then `snakemake --unlock` and run again"
        )
    return f"{folder}: the last snakemake here was killed; `snakemake --unlock` and run again"


def _noted_machine(folder: Path) -> str | None:
    try:
        return json.loads((folder / NOTE).read_text(encoding="utf-8"))["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _at_work(folder: Path) -> tuple[list[int], list[int]]:
    """Return this machine's snakemake processes in a folder, and its job processes, without this one."""
    import psutil

    own = psutil.Process()
    family = {process.pid for process in (own, *own.parents())}
    runs, jobs = [], []
    for process in psutil.process_iter():
        try:
            if process.pid in family or Path(process.cwd()) != folder or process.status() == psutil.STATUS_ZOMBIE:
                continue
            names = {Path(word).name for word in process.cmdline()[:3]}
        except (psutil.Error, OSError):  # it has ended, or is somebody else's
            continue
        if "snakemake" in names:
            runs.append(process.pid)
        elif "replaceme" in names or names & {"replaceme.workflow.gpu_lock", "replaceme.workflow.step_server"}:
            jobs.append(process.pid)
    return runs, jobs
