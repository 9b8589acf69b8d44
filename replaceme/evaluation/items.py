"""Items of lm-eval's tasks: their questions, the model's answers, and the task's scores of the answers.

lm-eval's own loop aggregates every metric at its end, where one that fails loses the answers to all tasks. Here errors
of a filter or of a task's own scoring are kept beside the items without errors, and metrics are aggregated by
`scoring`.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.evaluation.lm_eval import compiled_once, one_bar

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task

FAULTS = (Exception, SystemExit)  # whatever the code of a task may raise


@dataclass(frozen=True)
class Item:
    """One item of a task: its number there, its document, its requests, and hashes of document, prompt and target."""

    number: int
    document: Any
    requests: "list[Instance]"
    hashes: str


@dataclass(frozen=True)
class Asked:
    """A task's items with their requests; for each filter the task's scores (`values`) or the reasons for none
    (`failures`).
    """

    task: "Task"
    items: list[Item]
    values: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def filters_of(task: "Task") -> list[str]:
    """Return the names of a task's filters, `none` where it names none."""
    return list(dict.fromkeys(ensemble.name for ensemble in getattr(task, "_filters", ())))


def ask(task: "Task", limit: int | None) -> Asked:
    """Build the requests of a task's first items (all of them for None); needs no model.

    Raises ReplaceMeError for whatever its templates, functions and data make impossible.
    """
    try:
        with one_bar(), compiled_once():
            task.build_all_requests(limit=limit)
            by_number: dict[int, list[Instance]] = {}
            for request in task.instances:
                by_number.setdefault(request.doc_id, []).append(request)
            items = [_item(task, number, requests) for number, requests in by_number.items()]
            wanted = len(task.eval_docs) if limit is None else min(limit, len(task.eval_docs))
    except FAULTS as error:
        raise ReplaceMeError(
            f"evaluation task {task.task_name!r}: its prompts cannot be made ({said(error)}); check its YAML and data"
        ) from error
    if len(items) < wanted:
        number = next(number for number in range(wanted) if number not in by_number)
        raise ReplaceMeError(
            f"evaluation task {task.task_name!r}, item {number}: nothing to choose from; mend its data"
        )
    return Asked(task, items)


def _item(task: "Task", number: int, requests: "list[Instance]") -> Item:
    """Return an item with the hashes that lm-eval gives it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    requests.sort(key=lambda request: request.idx)
    document, prompt = requests[0].doc, requests[0].arguments[0]
    text = json.dumps(document, indent=2, default=handle_non_serializable, ensure_ascii=False)
    target = str(task.doc_to_target(document))
    return Item(number, document, requests, "".join(hash_string(part) for part in (text, prompt, target)))


def said(error: BaseException) -> str:
    """Return the message of an error in a task's code, on one line."""
    return f"{type(error).__name__}: {in_one_line(error)}"


def answer(lm: Any, asked: Sequence[Asked]) -> None:
    """Let a model answer all requests, those of one kind together, and let each task score its items.

    Raises ReplaceMeError where the model cannot answer, and when a log-likelihood is not finite: lm-eval would count
    such an item as an answer.
    """
    kinds: dict[str, list[Instance]] = {}
    for one in asked:
        for request in one.task.instances:
            kinds.setdefault(request.request_type, []).append(request)
    try:
        with one_bar():
            for kind, requests in kinds.items():
                repeated = [request for request in requests for _ in range(request.repeats)]
                for request, response in zip(repeated, getattr(lm, kind)(repeated), strict=True):
                    request.resps.append(response)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        names = ", ".join(one.task.task_name for one in asked)
        raise ReplaceMeError(
            f"evaluation tasks {names}: cannot be run ({said(error)}); check its YAML and data, and that the tokenizer "
            "is the model's"
        ) from error
    for one in asked:
        _check_finite(one)
        score(one)


def _check_finite(asked: Asked) -> None:
    for item in asked.items:
        for response in (response for request in item.requests for response in request.resps):
            number = response[0] if isinstance(response, tuple | list) else response
            if isinstance(number, float) and not math.isfinite(number):
                raise ReplaceMeError(
                    f"evaluation task {asked.task.task_name!r}, item {item.number}: the model's log-likelihood is "
                    f"{number}; its weights or its dtype are broken"
                )


def score(asked: Asked) -> None:
    """Fill `values` and `failures` from the answers."""
    for ensemble in getattr(asked.task, "_filters", ()):
        try:
            with compiled_once():
                ensemble.apply(asked.task.instances)
                asked.values[ensemble.name] = list(_scores(asked, ensemble.name))
        except FAULTS as error:
            asked.failures[ensemble.name] = said(error) if not isinstance(error, ReplaceMeError) else str(error)


def _scores(asked: Asked, name: str) -> Iterator[dict[str, Any]]:
    """Yield the task's scores of each item by one of its filters."""
    own = callable(asked.task.get_config("process_results"))
    for item in asked.items:
        # a function of the task's own may change what it is given, and has it again for the next filter
        document = copy.deepcopy(item.document) if own else item.document
        try:
            given = asked.task.process_results(document, [request.filtered_resps[name] for request in item.requests])
        except FAULTS as error:
            raise ReplaceMeError(f"item {item.number}: {said(error)}") from error
        if not isinstance(given, Mapping):
            raise ReplaceMeError(f"item {item.number}: scored by {type(given).__name__}, not by a dict of metrics")
        yield {str(metric): value for metric, value in given.items()}


def rehearse(asked: Asked) -> Asked:
    """Score a task's items with made-up answers and discard the scores, so that a faulty task raises early."""
    made_up = {"loglikelihood": lambda k: (-1.0 - k, False), "loglikelihood_rolling": lambda k: -1.0}
    trial = Asked(asked.task, asked.items)
    requests = asked.task.instances
    for request in requests:
        request.resps = [made_up.get(request.request_type, lambda k: "x")(request.idx)] * request.repeats
    score(trial)
    for request in requests:
        request.resps, request.filtered_resps = [], {}
    return trial
