"""Bad evaluation tasks: unknown, renamed, broken, without data, with functions that are not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile.stage import CHECK, Case, write_task

EVALUATE = ("evaluate", "model", "--task", "quiz", "--include", "tasks", "--out", "out.json")


def asked(name: str, *more: str) -> tuple[str, ...]:
    """Return the command that runs a task of this name."""
    return ("evaluate", "model", "--task", name, "--include", "tasks", *more, "--out", "out.json")


def case(
    spoil: Callable[[], Any], key: str, remedy: str, command: tuple[str, ...] = EVALUATE, file: str = "quiz"
) -> Case:
    """Return a case with this change of the task."""
    return Case(spoil, file, key, remedy, command)


def changed(key: str, remedy: str, says: str, **changes: Any) -> Case:
    """Return the task with other entries."""
    return case(lambda: write_task(**changes), says, remedy)


def function(code: str) -> Callable[[], None]:
    """Return a task whose text is made by a function in a file beside it."""

    def spoil() -> None:
        write_task()
        path = Path("tasks/quiz.yaml")
        path.write_text(path.read_text().replace("'{{question}}'", "!function own.text"))
        Path("tasks/own.py").write_text(code)

    return spoil


def nothing() -> None:
    """Leave the project unchanged."""


CASES = {
    "not there": case(nothing, "unknown evaluation task 'quizz'", "close: quiz", asked("quizz"), "tasks"),
    "renamed": case(
        lambda: write_task(task="quiz_v2"), "unknown evaluation task 'quiz'", "close: quiz_v2", EVALUATE, "tasks"
    ),
    "a name that is a path": case(nothing, "../quiz", "use letters, digits", asked("../quiz"), "options"),
    "options that are no JSON": case(nothing, "--task quiz: not valid JSON", "after '='", asked("quiz={"), "options"),
    "unknown option": case(
        nothing, "shots: unknown key", "did you mean 'fewshot'?", asked('quiz={"shots": 1}'), "--task quiz"
    ),
    "no folder": case(
        nothing,
        "no such folder of evaluation tasks",
        "`include`",
        ("evaluate", "model", "--task", "quiz", "--include", "none", "--out", "out.json"),
        "none",
    ),
    "no folder, in the config": case(
        lambda: Path("tasks").rename("elsewhere"),
        "evaluations.quiz: tasks: no such folder",
        "`include` is a folder",
        CHECK,
        "config.yaml",
    ),
    "no YAML": case(
        lambda: Path("tasks/quiz.yaml").write_text("task: [\n"), "tasks/quiz.yaml", "cannot be read", EVALUATE
    ),
    "a metric that it lacks": case(nothing, "no metric 'f1'", "it has acc", asked('quiz={"metric": "f1"}'), "quiz"),
    "a filter that it lacks": case(
        nothing, "no filter 'nope'", "its filters: none", asked('quiz={"metric": "acc,nope"}'), "quiz"
    ),
    "as many examples as items": case(
        nothing, "4 of split 'test'", "lower `fewshot`", asked('quiz={"fewshot": 4}'), "quiz"
    ),
    "no data": case(lambda: Path("tasks/quiz.jsonl").unlink(), "quiz.jsonl exists neither", "where you are"),
    "broken data": case(
        lambda: Path("tasks/quiz.jsonl").write_text('{"question": \n'), "cannot be loaded", "check its YAML and data"
    ),
    "a column that is not there": changed(
        "doc_to_text", "check its YAML", "'nothing' is undefined", doc_to_text="{{nothing}}"
    ),
    "an answer out of range": changed(
        "doc_to_target", "check its YAML", "cannot be loaded", doc_to_target="{{answer + 7}}"
    ),
    "no text": changed("doc_to_text", "check its YAML", "cannot be", doc_to_text=None),
    "no such function": case(function("def other(doc): return 'w1'\n"), "quiz.yaml: cannot be read", "check it"),
    "a function that fails on import": case(
        function("import nothing_of_this_name\n"), "quiz.yaml: cannot be read", "check it"
    ),
    "a function that fails": case(
        function("def text(doc): return doc['nothing']\n"), "cannot be loaded", "check its YAML"
    ),
}
