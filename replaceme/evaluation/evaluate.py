"""Benchmark a model folder with lm-eval: every number with its standard error, its count and its per-item values.

The per-item values make paired comparisons of two models possible. Avg-acc is the unweighted mean over the tasks with
`in_average`. All that a task can get wrong by itself is found before the model answers (see `task_checks`).
"""

import contextlib
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replaceme.config.evaluations import EvaluationConfig, TaskConfig
from replaceme.core import uncertainty
from replaceme.core.offline import offline
from replaceme.evaluation import items as answers
from replaceme.evaluation import lm_eval as harness
from replaceme.evaluation import overlap, scoring, task_checks, task_index
from replaceme.evaluation.items import Asked
from replaceme.evaluation.scoring import Pool
from replaceme.models.loading import ON_CPU, RunsOn, load_causal_model, load_tokenizer, size
from replaceme.provenance.environment import hardware, versions


@dataclass(frozen=True)
class Ready:
    """Tasks with their prompts: the items of each and of its members, and the metric that stands for it.

    `perplexity` is a task and the perplexity that it reports.
    """

    asked: dict[str, list[Asked]]
    metrics: dict[str, str]
    perplexity: tuple[str, str] | None


def evaluate(
    model_folder: str | Path,
    section: EvaluationConfig,
    runs_on: RunsOn = ON_CPU,
    checked: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder on the lm-eval tasks of a section and return a JSON-able record.

    The model is read beside the tasks. `checked` is called once it is read, before it answers anything.

    When all tasks are local files, no library tries the network. The section's `dtype` is that of the config: the one
    used is in `runs_on`. Raises ReplaceMeError for unknown tasks or metrics, missing data, broken models, and where a
    metric that stands for a task comes to no number; of other metrics that do, warnings.
    """
    started = time.perf_counter()
    tasks, seed = section.tasks, section.seed
    with harness.quiet():
        manager = task_index.find_tasks(list(tasks), section.include)
        harness.import_libraries()
        with _beside(_read, model_folder, runs_on, checked) as model, ready(manager, section) as tasks_ready:
            asked = [one for members in tasks_ready.asked.values() for one in members]
            overlap.warn(model_folder, [one.task for one in asked])
            most = None if section.batch_size == "auto" else section.batch_size
            lm = harness.language_model(*model.result(), section.at_once, most)
            lm.check(request for one in asked for request in one.task.instances)
            _seed(seed)
            answers.answer(lm, asked)
            scored = {name: _score(name, tasks_ready, options, seed) for name, options in tasks.items()}
    return {
        "model": str(model_folder),
        **size(lm.model, model_folder),
        "tasks": scored,
        "average": average(scored),
        "perplexity": _perplexity(tasks_ready),
        "seconds": time.perf_counter() - started,
        "seed": seed,
        "limit": section.limit,
        "dtype": runs_on.dtype,
        "device": runs_on.device,
        "versions": versions(),
        "hardware": hardware(),
    }


@contextmanager
def ready(manager: Any, section: EvaluationConfig) -> Iterator[Ready]:
    """Load tasks and build all their prompts; raises ReplaceMeError for faults that show before a model answers.

    Copies of local data are gone after the block, in which no library tries the network where all data are local.
    """
    tasks, include, perplexity_task = section.tasks, section.include, section.perplexity
    local = task_index.all_local(manager, list(tasks))
    with tempfile.TemporaryDirectory(prefix="replaceme-") as cache, offline() if local else contextlib.nullcontext():
        own = {
            one for one in task_index.own_tasks(manager, list(tasks), include) if task_index.all_local(manager, [one])
        }
        fewshot = {name: options.fewshot for name, options in tasks.items()}
        loaded = harness.load_tasks(manager, fewshot, include, cache, section.seed)
        declared = {name: [task_checks.declared(task) for task in members] for name, members in loaded.items()}
        metrics = {name: task_checks.chosen_metric(name, declared[name], options) for name, options in tasks.items()}
        perplexity = None
        if perplexity_task is not None:
            perplexity = (perplexity_task, task_checks.perplexity_metric(perplexity_task, declared[perplexity_task]))
        _seed(section.seed)
        asked = {}
        for name, members in loaded.items():
            wanted = [metrics[name], *([perplexity[1]] if perplexity and perplexity[0] == name else [])]
            asked[name] = [task_checks.prepared(task, wanted, section.limit, task.task_name in own) for task in members]
        yield Ready(asked, metrics, perplexity)


@contextmanager
def _beside(work: Callable[..., Any], *given: Any) -> Iterator[Future]:
    """Run a function beside the block; its result, or what it raises, is for the block to ask for."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work, *given)


def _read(folder: str | Path, runs_on: RunsOn, checked: Callable[[], None] | None) -> tuple[Any, Any]:
    """Return the model and the tokenizer of a folder; `checked` says best what is wrong with files that do not load."""
    try:
        return load_causal_model(folder, runs_on.dtype, runs_on.device, runs_on.held), load_tokenizer(folder)
    finally:
        if checked is not None:
            checked()


def _seed(seed: int) -> None:
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _score(name: str, tasks: Ready, options: TaskConfig, seed: int) -> dict[str, Any]:
    """Return one task's part of the record; `items` are the values of the chosen metric, one per item in the task's
    order.
    """
    members, metric = tasks.asked[name], tasks.metrics[name]
    pools = scoring.pools_of(members)
    found = scoring.estimates(name, members, pools, seed)
    scoring.check_value(name, metric, pools, found)
    value, stderr = found.found[metric]
    shots = sorted({one.task.get_config("num_fewshot") for one in members})
    task_versions = sorted({str(one.task.VERSION) for one in members})
    return {
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(pools[metric].given),
        "version": members[0].task.VERSION if len(task_versions) == 1 else ", ".join(task_versions),
        "fewshot": shots[0] if len(shots) == 1 else shots,
        "in_average": options.in_average,
        "metrics": {key: {"value": value, "stderr": stderr} for key, (value, stderr) in found.found.items()},
        "documents": _documents(members),
        "items": [scoring.stored(item) for item in pools[metric].values],
        **_parts(members, metric, seed),
    }


def _parts(members: Sequence[Asked], metric: str, seed: int) -> dict[str, Any]:
    """Return each member's value by the metric of a group; for a single task nothing."""
    if len(members) == 1:
        return {}
    found = {}
    for one in members:
        pool = scoring.pools_of([one]).get(metric, Pool(metric, []))
        value, stderr = scoring.value_of(one.task, pool, seed)
        found[one.task.task_name] = {"value": value, "stderr": stderr, "n": len(pool.given)}
    return {"members": found}


def _documents(members: Sequence[Asked]) -> str:
    """Return the SHA-256 over the items and their prompts: equal hashes mean that two models answered the same
    questions.
    """
    digest = hashlib.sha256()
    for one in members:
        for _ in answers.filters_of(one.task):
            for item in one.items:
                digest.update(item.hashes.encode())
    return digest.hexdigest()


def average(scored: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the mean accuracy over the tasks with `in_average`, and its standard error; None where there are none."""
    counted = [(task["value"], task["stderr"]) for task in scored.values() if task["in_average"]]
    if not counted:
        return None
    value, stderr = uncertainty.average(counted)
    return {"value": value, "stderr": stderr}


def _perplexity(tasks: Ready) -> dict[str, Any] | None:
    """Return the perplexity that a task reports (per target, per word or per byte), from per-item log-likelihoods."""
    if tasks.perplexity is None:
        return None
    name, metric = tasks.perplexity
    members = tasks.asked[name]
    pools = scoring.pools_of(members)
    items = [scoring.plain(item) for item in pools[metric].given] if metric in pools else []
    value, stderr = scoring.perplexity_of(name, metric, items)
    return {
        "task": name,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(items),
        "documents": _documents(members),
        "items": items,
    }
