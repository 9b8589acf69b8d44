"""A project small enough to run whole: a random Llama of 4 blocks, 24 sentences, two tasks of 10 items.

`project` is an empty one, `completed` a copy of one that `snakemake` has brought to its end. The completed run is made
once, with sockets blocked (`startup/sitecustomize.py`), so that every job of it is watched. Jobs have their imports
from a server (`startup/warm.py`); the same steps without Snakemake, in `by_hand`, import what a user's do. All run a
snapshot of the code, laid out as it is installed, because an edit during the tests would rightly rerun jobs.
"""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"w{k}" for k in range(40)]
BIN = Path(sys.executable).parent
STARTUP = ROOT / "tests/startup"
STATIC = Path(__file__).parent / "project"
ODD = "pro{ject} [1] *?'ü"  # what a shell, Snakemake, glob and URLs read otherwise
# `verify` of what its words name first, while the process is fresh, with no other process to look from
IN_ONE_PROCESS = """
import shlex, sys
from replaceme.cli import main
from replaceme.verification import reload
processes, reload.subprocess = reload.subprocess, None
if main(sys.argv[1:]) != 0:
    sys.exit("failed: verify")
reload.subprocess = processes
for line in open("steps.sh").readlines()[1:]:
    if main(shlex.split(line)[1:]) != 0:
        sys.exit(f"failed: {line}")
"""
# columns of the table that are times and memory, by which two runs may differ
TIMINGS = ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_s", "peak_memory_bytes")


@dataclass(frozen=True)
class Project:
    """A working directory with a config, and the ways to run something in it."""

    folder: Path
    code: Path
    configfile: str | None = "my.yaml"

    def config(self, **sections: Any) -> dict[str, Any]:
        """Return the config, with entries merged into its sections and written back (None removes one)."""
        path = self.folder / "my.yaml"
        config = yaml.safe_load(path.read_text())
        merge(config, sections)
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return config

    def command(self, *arguments: str, cores: str | None = "2") -> list[str]:
        """Return `snakemake` on this folder, started from it."""
        given_cores = ["--cores", cores] if cores else []
        given = ["--configfile", self.configfile] if self.configfile else []
        where = ["--snakefile", str(self.code / "Snakefile"), "--directory", str(self.folder)]
        return [str(BIN / "snakemake"), *arguments, *given_cores, *where, *given]

    def snakemake(self, *arguments: str, cores: str | None = "2", **environment: str) -> subprocess.CompletedProcess:
        """Run Snakemake to its end."""
        return self.execute(self.command(*arguments, cores=cores), **environment)

    def jobs(self, *arguments: str, **environment: str) -> dict[str, int]:
        """Return the number of jobs by rule that `snakemake -n` would run."""
        done = self.snakemake("--quiet", "rules", "--dry-run", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return self.job_stats(done.stdout + done.stderr)

    @staticmethod
    def job_stats(text: str) -> dict[str, int]:
        """Return the numbers of Snakemake's job table, without the total."""
        assert "Nothing to be done" in text or "Job stats" in text, text
        found = re.findall(r"^(\w+) +(\d+)$", text.split("Job stats:")[-1], flags=re.MULTILINE)
        return {rule: int(count) for rule, count in found if rule not in ("total", "all")}

    def replaceme(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run one step."""
        return self.execute([str(BIN / "replaceme"), *arguments], **environment)

    def execute(self, command: list[str], **environment: str) -> subprocess.CompletedProcess:
        """Run a command here to its end, with its output as text."""
        environment = self.environment(**environment)
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=540)

    def environment(self, **changes: str) -> dict[str, str]:
        """Return no GPU, one thread, nothing of the virtual environment's activation, and a note of any attempt to
        connect.
        """
        dropped = ("HF_", "SNAKEMAKE", "PYTEST", "COV_", "PYTHONDONTWRITEBYTECODE")  # the snapshot is compiled once
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        return kept | {
            "PATH": os.defpath,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "REPLACEME_STEP_SERVER": "",  # jobs have the tests' own
            "PYTHONPATH": os.pathsep.join([str(STARTUP), str(self.code)]),
            "REPLACEME_TEST_ATTEMPTS": str(self.attempts),
            "XDG_CACHE_HOME": str(self.folder / ".cache"),
            "HF_HOME": str(self.folder / ".cache/huggingface"),
            **changes,
        }

    def kills(self) -> dict[str, Any]:
        """Return the kills seen by `run_through_kills`."""
        return json.loads((self.folder / "kills.json").read_text())

    def add_model(self, name: str, **sizes: int) -> None:
        """Write another random Llama."""
        write_model(self.folder / name, **sizes)

    @property
    def attempts(self) -> Path:
        """File that notes attempts to use the network."""
        return self.folder / "attempts.txt"

    def table(self, name: str = "main.1") -> list[dict[str, str]]:
        """Return rows of a table without the columns that may differ from run to run."""
        with (self.folder / f"results/tables/{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert set(TIMINGS) < set(rows[0])
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def merge(into: dict, values: dict) -> None:
    """Merge nested mappings; None removes a key."""
    for key, value in values.items():
        if value is None:
            into.pop(key)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def write_project(folder: Path) -> None:
    """Write all files of a project: those kept beside this one, and a model, text and items from a fixed seed."""
    chance = random.Random(0)
    copy_tree(STATIC, folder)

    def sentence(length: int) -> str:
        return " ".join(chance.choices(WORDS, k=length))

    write_model(folder / "models/tiny/first")
    write_lines(folder / "plain.jsonl", [{"text": sentence(chance.randint(6, 20))} for _ in range(24)])
    pick = [{"context": sentence(5), "choices": chance.sample(WORDS, 3), "gold": k % 3} for k in range(10)]
    write_lines(folder / "tasks/pick.jsonl", pick)
    write_lines(folder / "tasks/last_word.jsonl", [{"text": sentence(8)} for _ in range(10)])


def write_lines(path: Path, records: list[dict]) -> None:
    """Write a .jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_model(folder: Path, **sizes: int) -> None:
    """Write a random Llama of 4 blocks with a tokenizer that knows whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1} | {w: k + 2 for k, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, **sizes}
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(WORDS) + 2, max_position_embeddings=64, **sizes, **special)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)


def write_own(source: Path, folder: Path) -> None:
    """Write a model without block 1, with layers and code of its own, and what it was made by."""
    import torch
    from given import cut_of

    from replaceme.models.checkpoints import resolve
    from replaceme.surgery.fold import merge
    from replaceme.transforms.transform import Transform

    matrix = torch.randn(16, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 3
    cut, transforms = cut_of([(1, 2)], 4), [Transform(matrix, {"solver": "by hand"}, placement="block")]
    merge(source, cut, transforms, folder / "model", {"note": "test"})
    resolve(str(source)).save(folder / "model.json")
    cut.save(folder / "cut.json")
    Transform.save_all(folder / "transform.safetensors", transforms)


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make a folder in the first worker that asks for it."""
    from filelock import FileLock

    ready = folder.with_suffix(".ready")
    with FileLock(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def copy_tree(source: Path, target: Path) -> Path:
    """Return a copy with all times of files kept."""
    return Path(shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True))


def run_through_kills(project: Project) -> None:
    """Run Snakemake to its end although jobs, and then Snakemake, are killed at moments fixed by a seed."""
    chance, seen = random.Random(20), {}
    # both gram jobs die while they write, and the merge of the identity at one of its files
    failed = project.snakemake(REPLACEME_TEST_KILL=f"gram:1,merge:{chance.randint(1, 5)}")
    left = sorted(path.name for path in project.folder.rglob(".tmp-*"))
    seen["after the kill of jobs"] = {"returncode": failed.returncode, "temporaries": left}
    seen["after the kill of snakemake"] = {"returncode": kill_snakemake(project, chance)}
    locked = project.snakemake()
    seen["locked"] = {"returncode": locked.returncode, "output": locked.stdout + locked.stderr}
    wait_for_orphans(project.folder)
    assert project.snakemake("--unlock").returncode == 0
    done = project.snakemake()
    assert done.returncode == 0, done.stdout + done.stderr
    (project.folder / "kills.json").write_text(json.dumps(seen))


def kill_snakemake(project: Project, chance: random.Random) -> int:
    """Start Snakemake and kill it, and nothing else, some time after its first jobs; returns its exit code."""
    log = project.folder / "killed.log"
    with log.open("w") as stream:
        process = subprocess.Popen(project.command(), cwd=project.folder, env=project.environment(), stderr=stream)
        jobs, deadline = chance.randint(1, 3), time.monotonic() + 400
        while log.read_text().count("Finished jobid") < jobs and process.poll() is None:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2))
        process.kill()
        return process.wait()


def wait_for_orphans(folder: Path) -> None:
    """Wait until no job of this folder is left: jobs outlive their Snakemake."""
    deadline = time.monotonic() + 200
    while any(works_in(process, folder) for process in psutil.process_iter()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def works_in(process: psutil.Process, folder: Path) -> bool:
    """Return whether a process runs in this folder."""
    try:
        return process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def by_hand(shared, pristine) -> Project:
    """The project after all steps by the command line, without Snakemake; made once, not to be changed."""

    def make(folder: Path) -> None:
        copy_tree(pristine.folder, folder)
        project = Project(folder, pristine.code)
        write_own(folder / "models/tiny/first", folder / "own")
        own = [f"own/{name}" for name in ("model.json", "cut.json", "transform.safetensors", "model")]
        words = ["verify", *own, "--device", "auto", "--threads", "1", "--out", "own/verify.json"]
        done = project.execute([sys.executable, "-c", IN_ONE_PROCESS, *words])
        assert done.returncode == 0, done.stderr

    return Project(once(shared / "by-hand", make), pristine.code)


@pytest.fixture(scope="session")
def pristine(shared) -> Project:
    """The project before anything ran; made once, not to be changed."""
    code = Path(os.environ["REPLACEME_TEST_WARM"]).with_name("code")
    return Project(once(shared / "pristine", write_project), code)


@pytest.fixture(scope="session")
def reference(shared, pristine) -> Project:
    """The project after a complete run that was killed three times on its way; made once, not to be changed."""

    def make(folder: Path) -> None:
        copy_tree(pristine.folder, folder)
        run_through_kills(Project(folder, pristine.code))

    return Project(once(shared / "reference", make), pristine.code)


@pytest.fixture
def project(pristine, tmp_path) -> Project:
    """A copy of the project in which nothing ran."""
    return Project(copy_tree(pristine.folder, tmp_path / "project"), pristine.code)


@pytest.fixture
def completed(reference, tmp_path) -> Project:
    """A copy of the completed run, in a folder with a name that nothing should take for more."""
    return Project(copy_tree(reference.folder, tmp_path / ODD), reference.code)
