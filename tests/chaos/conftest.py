"""The project of the workflow's tests, and its steps undisturbed, against which disturbed ones are held."""

import hashlib
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from workflow.conftest import Project, copy_tree
from workflow.conftest import pristine as pristine
from workflow.conftest import shared as shared

from replaceme.core.digests import KEY
from replaceme.core.files import TEMPORARY
from replaceme.core.sweep import sweep_temporaries
from replaceme.provenance.job_record import FOLDER

HERE = Path(__file__).parent
# for the sample: what needs no more than torch and transformers
SAMPLED = ("model", "tokens", "candidates", "cut", "gram", "sum", "rows", "fit", "merge")
LEFT_OUT = ("own/", "recycled", "before", "streamline")
BEGIN = time.monotonic()
SLOW = {"verify": 8.0, "prune": 4.0, "evaluate": 3.0, "heal": 3.0, "generate": 1.5}
TAKEN_UP = ".fit-state-*", ".*-healing.safetensors"  # by the next run of the same step


@dataclass(frozen=True)
class Answer:
    """How a step ended: its exit code, negative for a signal, its seconds, its moments, and what it said."""

    status: int
    seconds: float
    moments: int | None
    error: str

    @property
    def killed(self) -> bool:
        """True if a signal ended it."""
        return self.status < 0

    @property
    def lines(self) -> list[str]:
        """Lines of its stderr."""
        return [line for line in self.error.splitlines() if line.startswith("replaceme: error") or "Traceback" in line]


class Forking:
    """The process of `forking.py`."""

    def __init__(self, project: Project, errors: Path, modules: list[str]) -> None:
        self._errors = errors.open("w")
        command = [sys.executable, str(HERE / "forking.py"), *modules]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True}
        self._process = subprocess.Popen(command, env=project.environment(), cwd=errors.parent, **pipes)

    def run(self, argv: list[str], folder: Path, **how: Any) -> Answer:
        """Run one step in a folder."""
        self._process.stdin.write(json.dumps({"argv": argv, "folder": str(folder), **how}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, Path(self._errors.name).read_text()
        return Answer(**json.loads(answer))

    def stop(self) -> None:
        """Let it end."""
        self._process.stdin.close()
        self._process.wait(60)
        self._errors.close()


@dataclass(frozen=True)
class Step:
    """One command: its words without `replaceme`, the files that it makes, and what it took undisturbed."""

    argv: list[str]
    outputs: frozenset[str]
    moments: int
    seconds: float

    @property
    def name(self) -> str:
        """`merge tiny.v1/plain/n1/ls/model`."""
        return f"{self.argv[0]} {self.out}"

    @property
    def out(self) -> str:
        """Its --out."""
        return self.argv[self.argv.index("--out") + 1]

    def reads(self, file: str) -> bool:
        """Return whether a file, or a folder that holds it, is among its arguments."""
        given = self.argv[1 : self.argv.index("--out")]
        if self.argv[0] == "table" and not file.endswith(("items.json", "speed.json", "fit.json")):
            return False
        return any(file == word or file.startswith(f"{word}/") for word in given)


@dataclass
class Undisturbed:
    """The steps, the folder in which all were run, and its files by their content."""

    folder: Path
    steps: list[Step]
    files: dict[str, str] = field(default_factory=dict)

    def copy(self, folder: Path) -> Path:
        """Return a copy of the folder, to be disturbed."""
        return copy_tree(self.folder, folder)

    def restore(self, folder: Path, files: Iterator[str] | set[str]) -> None:
        """Put files back as they were."""
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(self.folder / name, folder / name)

    def makes(self, file: str) -> Step:
        """Return the step that makes a file."""
        return next(step for step in self.steps if file in step.outputs)


def contents(folder: Path) -> dict[str, str]:
    """Return SHA-256 of all files below a folder, without what differs from run to run; not of steps' records."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: _content(path) for name, path in found.items() if not name.startswith(f"{FOLDER}/")}


def _content(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "speed.json":
        data = json.dumps(sorted(json.loads(data))).encode()
    elif path.name == "items.json":
        record = json.loads(data)
        data = json.dumps({key: value for key, value in record.items() if key not in ("seconds", KEY)}).encode()
    return hashlib.sha256(data).hexdigest()


def unlike(undisturbed: Undisturbed, folder: Path, step: Step) -> list[str]:
    """Return the faults of a folder in which a step was killed: files half written, or gone that the step does not
    make.

    What the step makes may be there, whole, or not; a folder with all of its files or none.
    """
    found = {
        name: content
        for name, content in contents(folder).items()
        if TEMPORARY not in name and not any(Path(name).match(pattern) for pattern in TAKEN_UP)
    }
    wrong = [f"{name}: not what it was" for name in found if undisturbed.files.get(name) != found[name]]
    gone = set(undisturbed.files) - set(found)
    wrong += [f"{name}: gone" for name in gone - step.outputs]
    inside = {name for name in step.outputs if name.startswith(f"{step.out}/")}
    if step.argv[0] in ("merge", "heal", "rows", "prune") and gone & inside not in (set(), inside):
        wrong.append(f"{step.out}: only a part of it is there")
    return wrong


def restored(undisturbed: Undisturbed, folder: Path) -> list[str]:
    """Return the differences from the undisturbed folder after a plain rerun, once the temporaries are swept."""
    sweep_temporaries(folder)
    found = contents(folder)
    return sorted(
        name for name in found.keys() | undisturbed.files.keys() if found.get(name) != undisturbed.files.get(name)
    )


def one_of(steps: list[Step], chance: random.Random) -> Step:
    """Return a step at random, more often a quick one."""
    return chance.choices(steps, [1 / cost(step) for step in steps])[0]


def cost(step: Step) -> float:
    """Return about the seconds of a step; not measured ones, by which other steps would be picked in each run."""
    return SLOW.get(step.argv[0], 0.5)


def run_all(forking: Forking, lines: list[list[str]], folder: Path) -> list[Step]:
    """Run steps one after another, undisturbed."""
    steps, before = [], set(contents(folder))
    for argv in lines:
        answer = forking.run(argv, folder)
        assert answer.status == 0, (argv, answer.error)
        after = set(contents(folder))
        steps.append(Step(argv, frozenset(after - before), answer.moments, answer.seconds))
        before = after
    return steps


@pytest.fixture(scope="session")
def whole(request) -> bool:
    """True in `make chaos`, false for its sample."""
    return request.config.option.markexpr == "chaos"


@pytest.fixture(scope="session")
def forking(pristine, whole, tmp_path_factory) -> Iterator[Forking]:
    """The process that runs steps."""
    modules = ["torch", "transformers", "datasets", *(["lm_eval.evaluator", "matplotlib.pyplot"] if whole else [])]
    process = Forking(pristine, tmp_path_factory.mktemp("forking") / "stderr", modules)
    yield process
    process.stop()


@pytest.fixture(scope="session")
def undisturbed(whole, forking, pristine, tmp_path_factory) -> Undisturbed:
    """All steps done, or for the sample those of SAMPLED."""
    lines = [shlex.split(line)[1:] for line in (HERE / "every_step.sh").read_text().splitlines()[1:]]
    if not whole:
        lines = [argv for argv in lines if argv[0] in SAMPLED and not any(word in " ".join(argv) for word in LEFT_OUT)]
    folder = copy_tree(pristine.folder, tmp_path_factory.mktemp("undisturbed") / "project")
    steps = run_all(forking, lines, folder)
    return Undisturbed(folder, steps, contents(folder))


@pytest.fixture
def disturbed(undisturbed, tmp_path) -> Path:
    """A copy of the undisturbed folder."""
    return undisturbed.copy(tmp_path / "project")


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a file system in memory of some size, unmounted at the end."""
    folders = []
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")

    def mount(size):
        folder = tmp_path / f"disk-{len(folders)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode != 0:
            pytest.skip("mounting is not allowed here")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def chance(request) -> random.Random:
    """A source of chance of its own for each test: what is picked is the same each time, when a kill falls is not."""
    return random.Random(request.node.name)


def pytest_addoption(parser):
    """Add the option for the figures of a whole run."""
    parser.addoption("--chaos-out", type=Path, help="JSON file for the figures of `make chaos`")


@pytest.fixture
def figures(request, shared) -> Iterator[dict[str, Any]]:
    """Figures counted by a test; added to the file of --chaos-out, with the machine, the versions and the time."""
    from replaceme.provenance.environment import hardware, versions

    found: dict[str, Any] = {}
    yield found
    out = request.config.getoption("--chaos-out", None)
    if out is None:
        return
    about = {"command": "make chaos", "hardware": hardware(), "versions": versions("snakemake")}
    with FileLock(shared / "figures.lock"):  # of all workers of pytest-xdist
        before = json.loads(out.read_text()) if out.is_file() else {}
        seconds = {"seconds": round(time.monotonic() - BEGIN)}
        out.write_text(json.dumps({**about, **before, **seconds, **found}, indent=2) + "\n")
