"""Try the tasks of an evaluation before anything runs: everything but the model's answers, where their data are local.

Of a task whose data lie on the Hub nothing is downloaded; its YAML says which metrics and filters it has.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.config.evaluations import EvaluationConfig, TaskConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation import task_checks, task_index
from replaceme.evaluation.evaluate import ready
from replaceme.evaluation.overlap import Measured, measured_on

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

TRIED = 1000  # first items of a task; the rest is tried before the model answers


def task_faults(manager: "TaskManager", section: EvaluationConfig, known: list[str]) -> Iterator[str]:
    """Yield a line for each known task that cannot be measured as configured, and for tasks that are the same."""
    for name in known:
        if task_index.needs(manager, [name]).problems:
            continue  # told already
        perplexity = name if name == section.perplexity else None
        try:
            if task_index.all_local(manager, [name]):
                alone = {"tasks": {name: section.tasks[name]}, "perplexity": perplexity}
                with ready(manager, section.model_copy(update=alone | {"limit": min(section.limit or TRIED, TRIED)})):
                    pass
            else:
                _check_declared(manager, name, section.tasks[name], perplexity)
        except ReplaceMeError as error:
            yield str(error)
    try:
        task_index.check_distinct(manager, known)
    except ReplaceMeError as error:
        yield str(error)


def _check_declared(manager: "TaskManager", name: str, options: TaskConfig, perplexity: str | None) -> None:
    configs = [task_index.whole_config(manager.task_index[leaf])[0] for leaf in task_index.leaves(manager, name) or []]
    declared = [task_checks.declared_in(config) for config in configs]
    if not declared or None in declared:
        return
    task_checks.chosen_metric(name, declared, options)
    if perplexity is not None:
        task_checks.perplexity_metric(perplexity, declared)


def measured_on_hub(manager: "TaskManager", section: EvaluationConfig, known: list[str]) -> list[Measured]:
    """Return the data that lm-eval's own tasks among the known ones evaluate on."""
    own = task_index.own_tasks(manager, known, section.include)
    leaves = dict.fromkeys(leaf for name in known for leaf in task_index.leaves(manager, name) or [] if leaf not in own)
    configs = [task_index.whole_config(manager.task_index[leaf])[0] for leaf in leaves]
    return [measured_on(config, Path.cwd()) for config in configs if config]
