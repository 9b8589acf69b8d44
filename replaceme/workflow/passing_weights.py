"""Remove the weights of models with `keep_models: false` after the last job that reads them; make them again for more.

Snakemake's `temp()` would do this if the weights were a declared output. But where one job needs such an output again,
it runs all others that have read it too: an evaluation added to the config would repeat the check, the speed and all
other evaluations of every row. So the weights stay undeclared, and jobs keep account of them, by a list of the models
whose weights pass, the jobs of the run that read each, and the command that makes it (`list_readers`). A step that
reads a model holds a lock on it, and makes missing weights again before it begins; the last of the steps removes them.
Weights that are made again have to equal the record.

At most as many models lie on the disk as jobs can run at once (`room`): before another one is made, the weights of a
model that waits for its readers are removed, and these make them again.
"""

import argparse
import fcntl
import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Self

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, RESULTS_VARIABLE, read_json, remove, state_of, sync
from replaceme.models.removed_weights import missing_weights, remove_weights, weights_of
from replaceme.provenance.job_cost import VARIABLE as COST_VARIABLE
from replaceme.workflow.gpu_lock import visible
from replaceme.workflow.planned import FOLDER, VARIABLE

log = logging.getLogger(__name__)
READERS = "readers.json"  # beside the list of planned jobs
READING = ("verify", "evaluate", "divergence", "speed", "heal")  # steps that read weights
MAKING = ("merge", "heal")  # rules that make models, named as their steps
AGAIN = ".again"  # folder beside a model, in which it is made again
OUTPUTS = ("--out", "--report")  # options of these steps that name files to be written


@dataclass(frozen=True)
class Passing:
    """A model whose weights pass: `readers` has the outputs of each job that reads them, by its `--out`.

    `command` is the step that makes the model, with its arguments, on so many `threads` and `gpus`; `source` the folder
    of the model that it reads, if that is one made here. The weights of a model that is kept are only made again, where
    they are missing.
    """

    kept: bool
    readers: dict[str, list[str]]
    command: list[str]
    threads: int
    gpus: int
    source: str | None


def list_at(results: str | Path) -> Path:
    """Return the path of the list of a run."""
    return Path(results, FOLDER, READERS)


@dataclass(frozen=True)
class Readers:
    """The list of a run, by its path."""

    path: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """Return the list of the workflow that runs this process; None by hand, or where it lists nothing."""
        results = os.environ.get(RESULTS_VARIABLE)
        return cls(list_at(results)) if results and list_at(results).is_file() else None

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_json(self.path)

    @property
    def room(self) -> int:
        """Number of models that may lie on the disk."""
        return self._content["room"]

    @cached_property
    def models(self) -> dict[str, Passing]:
        """The listed models by their folders."""
        return {folder: Passing(**one) for folder, one in self._content["models"].items()}

    def read_by(self, out: str) -> str | None:
        """Return the folder that the job reads which writes `out`, if it is a listed one."""
        return next((folder for folder, one in self.models.items() if out in one.readers), None)

    def is_over(self, folder: str) -> bool:
        """Return whether each job of this run that reads a model has written its outputs."""
        began = self.path.stat().st_mtime_ns
        states = [state_of(Path(path)) for outputs in self.models[folder].readers.values() for path in outputs]
        return all(state is not None and state[1] >= began for state in states)

    @contextmanager
    def open_lock(self, folder: str) -> Iterator[IO]:
        """Open the file that is locked for a folder, or for their count: freed when the process ends."""
        name = hashlib.sha256(folder.encode()).hexdigest()[:32]
        with (self.path.parent / f"{name}.lock").open("a+") as file:
            yield file


@contextmanager
def weights_for(step: str, args: argparse.Namespace) -> Iterator[None]:
    """Have the weights that a step reads in their place within the block, and remove them if it was the last one.

    Without a workflow, and where all weights stay, nothing is done.
    """
    out = str(getattr(args, "out", None))
    listed = Readers.of_environment() if step in (*READING, *MAKING) else None
    if listed is None:
        yield
        return
    reading, made = listed.read_by(out), out if out in listed.models else None
    with _present(listed, reading) if reading else nullcontext(), _making(listed, made) if made else nullcontext():
        yield


@contextmanager
def _present(listed: Readers, folder: str) -> Iterator[None]:
    """Hold a shared lock on a listed model with all its weights; whoever ends last removes them."""
    with listed.open_lock(folder) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while missing_weights(folder):
            fcntl.flock(lock, fcntl.LOCK_EX)  # frees it first, as the next line does
            if missing_weights(folder):
                _make_again(listed, folder, lock)
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield
        fcntl.flock(lock, fcntl.LOCK_UN)
        if _is_free(lock) and not listed.models[folder].kept and listed.is_over(folder):
            log.info("%s: its weights are removed: nothing more reads them", folder)
            remove_weights(folder)


@contextmanager
def _making(listed: Readers, folder: str) -> Iterator[None]:
    """Hold the lock on a model that is being made, for which there is room."""
    with listed.open_lock(folder) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _make_room(listed, folder)
        yield


def _is_free(lock: IO) -> bool:
    """Take a lock for this process alone if nobody holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_room(listed: Readers, folder: str) -> None:
    """Remove the weights of a model that waits for its readers, where no room is left for those of `folder`."""
    with listed.open_lock("") as count:
        fcntl.flock(count, fcntl.LOCK_EX)
        lying = [one for one in listed.models if one != folder and _lies(listed, one)]
        if len(lying) < listed.room:
            return
        for one in lying:
            with listed.open_lock(one) as lock:
                if not listed.models[one].kept and _is_free(lock):
                    log.info("%s: its weights are removed to make room, and made again when they are read", one)
                    remove_weights(one)
                    return


def _lies(listed: Readers, folder: str) -> bool:
    """Return whether weights of a model are on the disk, or about to be."""
    if len(missing_weights(folder)) < len(weights_of(folder)):
        return True
    with listed.open_lock(folder) as lock:
        return not _is_free(lock)


def _make_again(listed: Readers, folder: str, lock: IO) -> None:
    """Make the weights of a model again by the command that made it, and put them into its folder.

    The command inherits the lock, which is so held as long as it runs, even if this process is killed. Raises
    ReplaceMeError where they are not those of its record.
    """
    model, aside = listed.models[folder], Path(folder).with_name(AGAIN)
    if len(visible()) < model.gpus:
        raise ReplaceMeError(
            f"{folder}: its weights, which are made on {model.gpus} GPU(s), have to be made again by a job that has "
            f"fewer; make them first: `snakemake --cores 1 {Path(folder) / RECORD} --forcerun {model.command[0]}`"
        )
    log.info("%s: its weights are made again: %s", folder, model.command[0])
    _make_room(listed, folder)
    with _present(listed, model.source) if model.source in listed.models else nullcontext():
        if not _has_run([model.command[0], *_elsewhere(model.command[1:], aside)], model.threads, lock):
            raise ReplaceMeError(f"{folder}: its weights could not be made again, as the lines above say")
    made, known = aside / Path(folder).name, weights_of(folder)
    if weights_of(made) != known:
        remove(aside)
        raise ReplaceMeError(
            f"{folder}: its weights, made again, differ from its record (another machine, other versions?); delete it "
            "and run again: all that was measured of it is measured anew"
        )
    for name in known:
        (made / name).replace(Path(folder) / name)
    sync(Path(folder))
    remove(aside)


def _elsewhere(arguments: list[str], folder: Path) -> list[str]:
    """Return the arguments of a step with its outputs in another folder."""
    pairs = zip(["", *arguments], arguments, strict=False)
    return [str(folder / Path(word).name) if before in OUTPUTS else word for before, word in pairs]


def _has_run(command: list[str], threads: int, lock: IO) -> bool:
    """Run a step that is no job, without a record, costs and plans of its own, and return whether it ended well."""
    dropped = (RESULTS_VARIABLE, COST_VARIABLE, VARIABLE)
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment["OMP_NUM_THREADS"] = str(threads)
    program = [sys.executable, "-m", "replaceme.cli"]
    return subprocess.run([*program, *command], env=environment, pass_fds=[lock.fileno()]).returncode == 0
