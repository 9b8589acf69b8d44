"""Record the origin of a step's output in a small JSON file: hashes of files read and written, options, versions.

On where the variable REPLACEME_RESULTS names a results folder, as the workflow sets it; the files go to its `records`,
at the path of the step's output. Nothing in them changes from one run to the next of the same work on the same machine,
but hashes of files that hold times. A step declares nothing: `core.files` notes the files that it reads and writes.
Weights are not read here: of a model its record counts (`model.json`, or `replaceme.json` of a checkpoint made here),
which has the hash of every file.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from replaceme.core import files
from replaceme.core.errors import printable
from replaceme.core.redaction import redacted
from replaceme.provenance.environment import hardware, versions

log = logging.getLogger(__name__)
FOLDER = "records"
PASSING = {"rows", "cost", FOLDER}  # folders whose files are gone when they were used, or are no part of a result


@contextlib.contextmanager
def recorded(step: str | None, out: str | Path | None, arguments: Sequence[str]) -> Iterator[None]:
    """Write the record of a step that writes `out`, if the block ends well; without REPLACEME_RESULTS do nothing.

    If a file was edited after it was read, the result's origin is unknown: a warning, and no record.
    """
    results = os.environ.get(files.RESULTS_VARIABLE)
    files.noted().clear()
    yield
    if not results or out is None or not Path(out).absolute().is_relative_to(Path(results).absolute()):
        return
    read, written = dict(files.noted().read), set(files.noted().written)
    # of a folder its record stands for all of it
    outputs = {path / files.RECORD if path.is_dir() else path for path in written}
    inputs = [path for path in read if written.isdisjoint((path, *path.parents))]
    record = {
        "step": step,
        "arguments": [redacted(argument) for argument in arguments],
        "inputs": hashes(inputs, results),
        "outputs": hashes(outputs, results),
        "versions": versions(),
        "hardware": hardware(),
    }
    # after hashing, so that a hash is of what was read
    changed = [str(path) for path in _kept(inputs, results).values() if files.state_of(path) != read[path]]
    if changed:
        log.warning(
            "%s: edited while this step ran; %s has no record, make it again", printable(", ".join(changed)), out
        )
        record_file(out, results).unlink(missing_ok=True)
    elif record["outputs"]:  # nothing to vouch for where only rows were written
        files.write_json(record_file(out, results), record)


def record_file(out: str | Path, results: str | Path) -> Path:
    """Return the path of the record of the step that writes `out` inside `results`."""
    inside = Path(out).absolute().relative_to(Path(results).absolute())
    return Path(results) / FOLDER / inside.with_name(f"{inside.name}.json")


def hashes(paths: Iterable[str | Path], results: str | Path) -> dict[str, str]:
    """Return the SHA-256 of those of `paths` that are files and stay, by their path relative to `results`, in order."""
    kept = _kept(paths, results)
    return dict(zip(kept, files.each_sha256(list(kept.values())), strict=True))


def _kept(paths: Iterable[str | Path], results: str | Path) -> dict[str, Path]:
    root = Path(results).absolute()
    places = {place_of(path, root): Path(path) for path in paths if Path(path).is_file()}
    return {place: places[place] for place in sorted(places) if not _is_passing(Path(place))}


def _is_passing(place: Path) -> bool:
    return place.parts[0] != os.pardir and bool(PASSING & set(place.parts[:-1]))


def place_of(path: str | Path, results: Path) -> str:
    """Return a path as seen from the results folder: relative if beside or below its parent, else absolute."""
    absolute = Path(os.path.normpath(Path(path).absolute()))
    if absolute.is_relative_to(results.parent):
        return os.path.relpath(absolute, results)
    return str(absolute)
