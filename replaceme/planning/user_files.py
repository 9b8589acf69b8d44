"""Declare the user's own files to Snakemake, so that a job runs again when one changes.

Their sizes and times are parameters of the jobs (`stamps`), so that a job runs again for every change. They are inputs
too, except files whose path contains wildcards of Snakemake.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from replaceme.config.schema import Config
from replaceme.core.files import AHEAD
from replaceme.models.checkpoints import local_files, names_folder

PROSE = {".md", ".pyc"}  # beside task YAMLs, of no matter to them
BRACES = re.compile(r"[{}]")


def model_files(source: str) -> list[Path]:
    """Return the files of a local model; none for a Hub id, whose revision is a parameter."""
    return local_files(source) if names_folder(source) else []


def text_file(dataset: str | None) -> list[str]:
    """Return the file from which a text is read, if it is one."""
    return [dataset] if dataset is not None and Path(dataset).is_file() else []


def task_files(folder: str | None) -> list[Path]:
    """Return the user's own task files in a folder: YAMLs, and the code and data beside them."""
    found = (path for path in Path(folder).rglob("*") if path.is_file()) if folder is not None else ()
    return sorted(path for path in found if path.suffix not in PROSE and not path.name.startswith("."))


def declared(files: Iterable[str | Path]) -> list[str | Path]:
    """Return the files that can be inputs of a job."""
    return [path for path in files if not BRACES.search(str(path))]


def stamps(files: Iterable[str | Path]) -> list[str]:
    """Return size and time of files, as a parameter: `cp -a` and `tar` bring changed files whose time is older."""
    found = [(str(path), path.stat()) for path in map(Path, files) if path.is_file()]
    return [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in found]


def hash_of_stamps(files: Sequence[str | Path]) -> str:
    """Return one hash of the stamps of files, of which there may be thousands."""
    found = stamps(files)
    return f"{len(found)} images {hashlib.sha256(repr(found).encode()).hexdigest()}"


def dates_ahead(config: Config) -> list[str]:
    """Return a line for each section with a file from the future: Snakemake fails a job with such an input at its
    end.
    """
    latest = time.time() + AHEAD / 1e9
    found = {where: path for where, path in _read_by(config) if _time_of(path) > latest}
    return [
        f"{where}: {path} is dated in the future ({datetime.fromtimestamp(_time_of(path)):%Y-%m-%d %H:%M}), which "
        "Snakemake takes for a wrong clock; set the clock right, or `touch` the file"
        for where, path in found.items()
    ]


def _time_of(path: str | Path) -> float:
    """Return when a file, or a link to it, was last changed."""
    return max(Path(path).stat().st_mtime, Path(path).lstat().st_mtime)


def _read_by(config: Config) -> Iterator[tuple[str, str | Path]]:
    """Yield (reader, file) for all files that the tables and figures of a config need."""
    tables = config.tables.values()
    for name in sorted({one for table in tables for one in table.named("models")}):
        yield from ((f"models.{name}", path) for path in model_files(config.models[name].source))
    for name in config.observed(tables):
        yield from ((f"calibrations.{name}", path) for path in text_file(config.calibrations[name].dataset))
    for name in sorted({table.evaluation for table in tables if table.evaluation is not None}):
        yield from ((f"evaluations.{name}", path) for path in task_files(config.evaluations[name].include))
    for name, table in config.tables.items():
        if table.reference is not None:
            yield f"tables.{name}", table.reference.file
    for name, figure in config.figures.items():
        if figure.published is not None:
            yield f"figures.{name}", figure.published.file
