"""A small project that works, in which each case spoils one thing, and what is asked of every refusal."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from replaceme.cli import main
from replaceme.core.files import json_text, read_json

CONFIG = {
    "models": {"tiny": {"source": "model"}},
    "calibrations": {"plain": {"dataset": "text.jsonl", "samples": 8, "tokens": 16, "shards": 2}},
    "cuts": {"n1": {"blocks": 1, "start": 2}},
    "fits": {"uidl": {"transform": "identity"}, "ls": {}},
    "evaluations": {"quiz": {"tasks": {"quiz": {}}, "include": "tasks"}},
    "speed": {"prompt_tokens": 8, "new_tokens": 4},
    "tables": {
        "main": {"models": ["tiny"], "calibrations": ["plain"], "cuts": ["n1"], "fits": ["ls"], "evaluation": "quiz"}
    },
}
TASK = {
    "task": "quiz",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "quiz.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc"}],
}
CHECK = ("check", "config.yaml")
LONGEST_LINE = 600  # characters of an error


@dataclass(frozen=True)
class Case:
    """A bad input: what makes it, the command that meets it, and what each line of the refusal says.

    `file`, `key` and `remedy` are parts of the line: where it is, what in it, and what to do. Of several faults at once
    `others` has the key and the remedy of each but the first, which has a line of its own.
    """

    spoil: Callable[[], Any]
    file: str
    key: str
    remedy: str
    command: Sequence[str] = CHECK
    lines: int = 1
    others: tuple[tuple[str, str], ...] = ()


def write_project(folder: Path) -> None:
    """Write the files of a project beside its model: config, text, a task."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"w{k} w{k + 1} w{k + 2}"}) + "\n" for k in range(40))
    )
    (folder / "tasks").mkdir()
    write_task()
    items = [{"question": f"w{k}", "choices": ["w1", "w2"], "answer": k % 2} for k in range(4)]
    (folder / "tasks" / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


def write_task(**changes: Any) -> None:
    """Write the task of the project, changed (None removes a key)."""
    task = {key: value for key, value in {**TASK, **changes}.items() if value is not None}
    Path("tasks/quiz.yaml").write_text(yaml.safe_dump(task))


def make() -> None:
    """Make the results of the steps: record, tokens (some of another tokenizer too), cut, sums, transform."""
    from replaceme.calibration.tokens import load_tokens

    steps = [
        "model model --out made/model.json",
        "tokens made/model.json --dataset text.jsonl --samples 40 --tokens 16 --out made/tokens.safetensors",
        "cut made/model.json --blocks 1 --start 2 --out made/cut.json",
        "gram made/model.json made/tokens.safetensors made/cut.json --device cpu --out made/gram.safetensors",
        "sum made/gram.safetensors --out made/sum.safetensors",
        "fit made/model.json made/cut.json --statistics made/sum.safetensors --device cpu --out made",
    ]
    for step in steps:
        code, shown = run(step.split())
        assert code == 0, shown
    tokens, metadata = load_tokens("made/tokens.safetensors")
    tokens.input_ids[0, 0] = 66  # of a vocabulary of 66
    tokens.save("made/foreign.safetensors", metadata)


def edit_json(path: str, **changes: Any) -> None:
    """Change entries of a JSON file (`...` removes one); a file of ours gets the digest of what it then holds."""
    raw, content = json.loads(Path(path).read_text()), read_json(path)
    ours = raw != content
    changed = {key: value for key, value in {**content, **changes}.items() if value is not ...}
    Path(path).write_text(json_text(changed) if ours else json.dumps(changed))


def run(words: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code of a command, and its lines on stderr."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        code = main(list(words))
    return code, shown.getvalue().split("\n")[:-1]


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every path below a folder, with size and time, so that whatever is written shows.

    Python's own copies of the code that a task names are not ours, nor the time of the folder that they lie in.
    """
    found = {path: path.lstat() for path in folder.rglob("*") if "__pycache__" not in path.parts}
    return {str(path): (one.st_size, one.st_mtime_ns) if path.is_file() else (0, 0) for path, one in found.items()}


def check_refused(case: Case, folder: Path) -> None:
    """Apply a case's fault, run, and check the refusal: code 1, one line of plain text with the remedy, nothing
    written.
    """
    case.spoil()
    before = contents(folder.parent)
    code, shown = run(case.command)
    errors = [line for line in shown if line.startswith("replaceme: error: ")]
    assert code == 1, shown
    assert len(errors) == case.lines + len(case.others) and errors == shown, "\n".join(shown)
    for line in errors:
        assert line.isprintable() and len(line) <= LONGEST_LINE and case.file in line, repr(line)
    for key, remedy in ((case.key, case.remedy), *case.others):
        about = [line for line in errors if key in line and remedy in line]
        assert len(about) == (1 if case.others else case.lines), (key, remedy, "\n".join(errors))
    assert contents(folder.parent) == before, "something was written"
