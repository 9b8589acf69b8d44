"""Find faults of a task before any model answers: its metric, its filters, its examples, its right answers.

Of a task that is loaded everything is tried on its own items, with answers that are made up; of one that would first
have to be downloaded, the YAML alone says which metrics and filters there are.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replaceme.config.evaluations import TaskConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation import examples
from replaceme.evaluation.items import FAULTS, Asked, ask, filters_of, rehearse, said
from replaceme.evaluation.lm_eval import compiled_once, render_once
from replaceme.evaluation.scoring import named

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")


@dataclass(frozen=True)
class Declared:
    """The metrics and filters of a task."""

    metrics: list[str]
    filters: list[str]


def declared(task: "Task") -> Declared:
    """Return the metrics and filters of a loaded task."""
    return Declared([*task.aggregation()], filters_of(task))


def declared_in(config: Mapping[str, Any]) -> Declared | None:
    """Return the metrics and filters in a task's YAML; None for a task that is a class, or an unreadable YAML."""
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    if not config or "class" in config:
        return None
    listed = config.get("metric_list")
    metrics = (
        [one.get("metric") for one in listed] if listed else DEFAULT_METRIC_REGISTRY.get(config.get("output_type"))
    )
    filters = [one.get("name") for one in config.get("filter_list") or []] or ["none"]
    return Declared([getattr(one, "__name__", str(one)) for one in metrics or []], filters)


def chosen_metric(name: str, members: Sequence[Declared], options: TaskConfig) -> str:
    """Return the metric that stands for a task, `metric,filter` where its filter has a name.

    Raises ReplaceMeError when the task, or one of a group's, lacks it.
    """
    metrics = _common([one.metrics for one in members])
    filters = _common([one.filters for one in members])
    if not filters:
        raise ReplaceMeError(f"evaluation task {name!r}: its tasks have no filter in common; name them one by one")
    asked, comma, which = (options.metric or "").partition(",")
    if comma and which not in filters:
        raise ReplaceMeError(
            f"evaluation task {name!r} has no metric {options.metric!r}: no filter {which!r}; its filters: "
            f"{_list(filters)}"
        )
    candidates = (asked,) if asked else ("acc_norm", "acc", *(() if options.in_average else metrics))
    for metric in candidates:
        if metric in metrics:
            return named(metric, which or filters[0])
    if asked:
        raise ReplaceMeError(f"evaluation task {name!r} has no metric {options.metric!r}; it has {_list(metrics)}")
    raise ReplaceMeError(
        f"evaluation task {name!r} has neither acc_norm nor acc; set `metric` to one of {_list(metrics)}, or take it "
        "out of the average"
    )


def perplexity_metric(name: str, members: Sequence[Declared]) -> str:
    """Return the perplexity that a task reports; raises ReplaceMeError when it reports none."""
    metrics, filters = _common([one.metrics for one in members]), _common([one.filters for one in members])
    for metric in PERPLEXITIES:
        if metric in metrics and filters:
            return named(metric, filters[0])
    raise ReplaceMeError(f"evaluation task {name!r} reports no perplexity; it reports {_list(metrics)}")


def _common(lists: Sequence[Sequence[str]]) -> list[str]:
    return [one for one in lists[0] if all(one in others for others in lists)] if lists else []


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def prepared(task: "Task", wanted: Sequence[str], limit: int | None, own: bool) -> Asked:
    """Return the items of a task with their prompts, after all checks; `wanted` are the metrics that must have a value.

    Raises ReplaceMeError for code that the task would run, too few examples, prompts that cannot be made, and right
    answers that are none (a warning unless the task is the user's `own`).
    """
    _check_kind(task)
    render_once(task)
    drawn = examples.keep_apart(task)
    asked = ask(task, limit)
    examples.tell(task, drawn)
    if not callable(task.get_config("process_results")):
        _check_answers(asked, own)
    _check_scoring(asked, wanted)
    return asked


def _check_kind(task: "Task") -> None:
    """Refuse tasks with code, pictures, or filters that cannot be built, which lm-eval builds only after all
    answers.
    """
    for attribute, what in (("UNSAFE_CODE", "runs what a model writes"), ("MULTIMODAL", "shows images or sounds")):
        if getattr(task, attribute, False):
            raise ReplaceMeError(f"evaluation task {task.task_name!r} {what}, which is not done here; drop it")
    for ensemble in getattr(task, "_filters", ()):
        try:
            for make in ensemble.filters:
                make()
        except FAULTS as error:
            raise ReplaceMeError(
                f"evaluation task {task.task_name!r}: filter {ensemble.name!r} cannot be made ({said(error)}); check "
                "its filter_list"
            ) from error


def _check_answers(asked: Asked, own: bool) -> None:
    """Report multiple-choice items whose right answer is none of the choices: lm-eval counts them as wrong."""
    task = asked.task
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    wrong = []
    with compiled_once():
        for item in asked.items:
            choices = task.doc_to_choice(item.document)
            from_text = getattr(task, "multiple_input", 0)  # as many contexts as there are answers
            right = (task.doc_to_text if from_text else task.doc_to_target)(item.document)
            for one in right if isinstance(right, list) else [right]:
                if one not in choices if isinstance(one, str) else one not in range(len(choices)):
                    wrong.append((item.number, one, len(choices)))
    if not wrong:
        return
    number, one, count = wrong[0]
    line = (
        f"evaluation task {task.task_name!r}, item {number}: the right answer {one!r} is none of its {count} choices "
        f"({len(wrong)} of {len(asked.items)} items)"
    )
    if own:
        raise ReplaceMeError(f"{line}; check its data and doc_to_target")
    log.warning("%s; they count as wrong", line)


def _check_scoring(asked: Asked, wanted: Sequence[str]) -> None:
    """Try a task's scoring on made-up answers, unless its own code judges text, which may fail on such answers."""
    task = asked.task
    for metric in wanted:
        if not callable(task.aggregation()[metric.partition(",")[0]]):
            raise ReplaceMeError(
                f"evaluation task {task.task_name!r}: lm-eval does not know the aggregation of {metric!r}; check its "
                "metric_list"
            )
    own = callable(task.get_config("process_results"))
    generates = task.OUTPUT_TYPE == "generate_until"
    if generates and (own or any(callable(one.get("metric")) for one in task.get_config("metric_list") or [])):
        return
    trial = rehearse(asked)
    for metric in wanted:
        kind, _, which = metric.partition(",")
        which = which or "none"
        if which in trial.failures:
            # with made-up answers a filter of text, or a task's own scoring, may fail where a model's do well
            if own or generates:
                continue
            raise ReplaceMeError(
                f"evaluation task {task.task_name!r} cannot be scored ({trial.failures[which]}); check its data"
            )
        given = dict.fromkeys(key for values in trial.values[which] for key in values)
        if kind not in given:
            raise ReplaceMeError(
                f"evaluation task {task.task_name!r} has no metric {metric!r}: its items give {_list([*given])}"
            )
