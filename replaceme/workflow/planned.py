"""The jobs of a run that take forward passes, written down as it starts, so that one pass can serve several of them.

Snakemake runs each job by itself, and which of them will run is known only when it starts. `write_plan` lists those of
SHARING; steps find the list by VARIABLE. The first job of a model, text and shard looks through it (`shared_pass`) and
gathers for the others too, whose results wait in a folder beside the list until their jobs fetch them. Nothing of this
changes what a job reads, writes or depends on: without a list, or with another than expected, it does its work alone.

A waiting result is known by its job's `key`: step, arguments, code, and the state of the files that it reads. So one
that a killed run has left serves the next run, if it is still what that would make.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from replaceme.core.files import remove, state_of, write_json

SHARING = ("distances", "gram", "rows")  # rules, named as their steps
VARIABLE = "REPLACEME_PLAN"  # of the environment of jobs: the path of the list
FOLDER = ".planned"  # of the results
LIST = "jobs.json"


@dataclass(frozen=True)
class PlannedJob:
    """A job that will run: its step, the arguments after that, the hash of its code, the files that it reads.

    `awaited` are those of them that other jobs of the same run make.
    """

    step: str
    arguments: list[str]
    code: str
    inputs: list[str]
    awaited: list[str] = field(default_factory=list)

    @property
    def out(self) -> str:
        """Path that the job writes."""
        return self.arguments[self.arguments.index("--out") + 1]

    @property
    def key(self) -> str:
        """Name of the job's result while it waits; another one for other arguments, code or inputs."""
        told = [self.step, self.arguments, self.code, [[path, state_of(Path(path))] for path in self.inputs]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Plan:
    """The list of a run, by its path."""

    path: Path

    @classmethod
    def of_environment(cls) -> Self | None:
        """Return the plan that the environment names; None without one."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path)) if path and Path(path).is_file() else None

    @cached_property
    def jobs(self) -> list[PlannedJob]:
        """All jobs of the list."""
        return [PlannedJob(**one) for one in json.loads(self.path.read_text(encoding="utf-8"))]

    def job(self, out: str | Path) -> PlannedJob | None:
        """Return the job that writes `out`, if it is planned."""
        return next((one for one in self.jobs if one.out == str(out)), None)

    def waiting(self, job: PlannedJob) -> Path:
        """Return where the result of a job waits for it: complete if a note lies there."""
        return self.path.parent / job.key / "result"

    def note(self, job: PlannedJob) -> Path:
        """Return the path of the note of what was read for a waiting result."""
        return self.path.parent / job.key / "note.json"

    def lock(self, shared: Any) -> Path:
        """Return the file that jobs lock which share what a pass depends on."""
        return self.path.parent / f"{hashlib.sha256(repr(shared).encode()).hexdigest()[:32]}.lock"

    def is_due(self, job: PlannedJob) -> bool:
        """Return whether a job can be done and was not: its inputs are those of this run, its result is nowhere."""
        began = self.path.stat().st_mtime_ns
        inputs = {path: state_of(Path(path)) for path in job.inputs}
        if any(state is None or (path in job.awaited and state[1] < began) for path, state in inputs.items()):
            return False
        made = state_of(Path(job.out))
        return not self.note(job).is_file() and (made is None or made[1] < began)


def write_plan(jobs: Iterable[Any], results: str | Path) -> str:
    """Write the list of the jobs of Snakemake that are about to run, and return its path."""
    jobs = list(jobs)
    made = {str(path) for job in jobs for path in job.output}
    found = [planned(job, made) for job in jobs if job.rule.name in SHARING]
    path = Path(results) / FOLDER / LIST
    write_json(path, [asdict(one) for one in found])
    return str(path)


def planned(job: Any, made: set[str]) -> PlannedJob:
    """Return what a job of Snakemake is going to do, where the run makes the files `made`."""
    step, *arguments = command_of(job)
    inputs = [str(path) for path in job.input]
    return PlannedJob(step, arguments, str(job.params.code), inputs, [one for one in inputs if one in made])


def command_of(job: Any) -> list[str]:
    """Return the step that a job of Snakemake runs and the arguments after it; none where it runs no step."""
    words = shlex.split(job.shellcmd) if job.shellcmd else []
    return words[words.index("replaceme") + 1 : words.index("2>")] if "replaceme" in words else []


def remove_plan(results: str | Path) -> None:
    """Remove the list and what was not fetched, after a run that came to its end."""
    remove(Path(results) / FOLDER)
