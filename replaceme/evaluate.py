"""Benchmark a model folder with lm-eval: every number with its standard error, its count and its per-item values.

The per-item values make paired comparisons of two models possible. Avg-acc is the unweighted mean over the tasks with
`in_average`; standard errors are in closed form (see `uncertainty`), a seeded bootstrap for other metrics.
"""

import contextlib
import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme import harness, task_index, uncertainty
from replaceme.errors import ReplaceMeError
from replaceme.loading import size
from replaceme.offline import offline
from replaceme.provenance import hardware, versions

if TYPE_CHECKING:
    from lm_eval.api.task import Task

PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")
BOOTSTRAP_DRAWS = 200


@dataclass(frozen=True)
class TaskOptions:
    """How one task is run and counted.

    `fewshot`: examples in context (None: as the task says, else 0). `metric`: None is acc_norm where the task has one,
    else acc; a filter may follow a comma, as in `exact_match,strict-match`. `in_average`: whether it enters Avg-acc.
    """

    fewshot: int | None = None
    metric: str | None = None
    in_average: bool = True


def evaluate(
    model_folder: str | Path,
    tasks: Mapping[str, TaskOptions],
    *,
    include: task_index.Include = None,
    perplexity_task: str | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    seed: int = 1234,
    device: str = "cpu",
    dtype: str = "float32",
    gpus: int = 1,
) -> dict[str, Any]:
    """Evaluate a checkpoint folder on lm-eval tasks and return a JSON-able record.

    `include`: folder(s) of task YAMLs; when all tasks are local files, no library tries the network. `limit`: first
    items of each task only. Raises ReplaceMeError for unknown tasks or metrics, missing data, broken models.
    """
    started = time.perf_counter()
    wanted = dict(tasks)
    if perplexity_task is not None and perplexity_task not in wanted:
        wanted[perplexity_task] = TaskOptions(in_average=False)
    if not wanted:
        raise ReplaceMeError("no evaluation tasks given")
    with harness.quiet(), tempfile.TemporaryDirectory(prefix="replaceme-") as cache:
        manager = task_index.find_tasks(list(wanted), include)
        with offline() if task_index.all_local(manager, list(wanted)) else contextlib.nullcontext():
            lm = _language_model(model_folder, (dtype, device, gpus), batch_size)
            fewshot = {name: options.fewshot for name, options in wanted.items()}
            loaded = harness.load_tasks(manager, fewshot, include, cache, seed)
            metrics = {name: _metric(name, loaded[name], options) for name, options in wanted.items()}
            _check_perplexity(perplexity_task, loaded)
            _seed(seed)
            samples = harness.run(lm, loaded, limit)
            scored = {
                name: _score(loaded[name], samples, metrics[name], options, seed) for name, options in wanted.items()
            }
    return {
        "model": str(model_folder),
        **size(lm.model, model_folder),
        "tasks": {name: scored[name] for name in tasks},
        "average": average({name: scored[name] for name in tasks}),
        "perplexity": _perplexity(perplexity_task, loaded, samples),
        "seconds": time.perf_counter() - started,
        "seed": seed,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "versions": versions(),
        "hardware": hardware(),
    }


def _language_model(folder: str | Path, where: tuple[str, str, int], batch_size: int) -> Any:
    from replaceme.loading import Held, load_causal_model, load_tokenizer

    dtype, device, gpus = where
    model = load_causal_model(folder, dtype, device, Held(gpus))
    return harness.language_model(model, load_tokenizer(folder), batch_size)


def _seed(seed: int) -> None:
    import random

    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def _metric(name: str, members: Sequence["Task"], options: TaskOptions) -> str:
    """The metric that stands for a task; raises ReplaceMeError, before anything runs, when the task lacks it."""
    available = [metric for metric in members[0].aggregation() if all(metric in t.aggregation() for t in members)]
    if options.metric is not None:
        if options.metric.split(",")[0] in available:
            return options.metric
        raise ReplaceMeError(f"evaluation task {name!r} has no metric {options.metric!r}; it has {_list(available)}")
    for metric in ("acc_norm", "acc", *(() if options.in_average else available)):
        if metric in available:
            return metric
    raise ReplaceMeError(
        f"evaluation task {name!r} has neither acc_norm nor acc; set `metric` to one of {_list(available)}, or take it "
        "out of the average"
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _score(
    members: Sequence["Task"], samples: Mapping[str, list], metric: str, options: TaskOptions, seed: int
) -> dict[str, Any]:
    """One task's part of the record; `items` are the values of the chosen metric, one per item in the task's order."""
    pools = _pools(members, samples)
    aggregations = members[0].aggregation()
    estimates = {
        key: _estimate(aggregations.get(key.split(",")[0]), items, seed)
        for key, items in pools.items()
        if key.split(",")[0] in aggregations
    }
    chosen = metric if metric in pools else next((key for key in pools if key.split(",")[0] == metric), None)
    if chosen is None:
        raise ReplaceMeError(f"evaluation task {members[0].task_name!r} gave no {metric!r}; it gave {_list([*pools])}")
    value, stderr = estimates[chosen]
    shots = sorted({task.get_config("num_fewshot") for task in members})
    task_versions = sorted({str(task.VERSION) for task in members})
    return {
        "metric": chosen,
        "value": value,
        "stderr": stderr,
        "n": len(pools[chosen]),
        "version": members[0].VERSION if len(task_versions) == 1 else ", ".join(task_versions),
        "fewshot": shots[0] if len(shots) == 1 else shots,
        "in_average": options.in_average,
        "metrics": {key: {"value": value, "stderr": stderr} for key, (value, stderr) in estimates.items()},
        "documents": _documents(members, samples),
        "items": pools[chosen],
        **_parts(members, samples, chosen, seed),
    }


def _parts(members: Sequence["Task"], samples: Mapping[str, list], metric: str, seed: int) -> dict[str, Any]:
    """Of a group, the `members`: each task's value by the group's metric; of a single task nothing."""
    if len(members) == 1:
        return {}
    found = {}
    for task in members:
        items = _pools([task], samples).get(metric, [])
        value, stderr = _estimate(task.aggregation()[metric.split(",")[0]], items, seed) if items else (None, None)
        found[task.task_name] = {"value": value, "stderr": stderr, "n": len(items)}
    return {"members": found}


def _pools(members: Sequence["Task"], samples: Mapping[str, list]) -> dict[str, list]:
    """Per-item values by metric, `metric,filter` where the task has filters, in the order of tasks and items."""
    pools: dict[str, list] = {}
    for task in members:
        for sample in samples[task.task_name]:
            for metric in sample["metrics"]:
                key = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
                pools.setdefault(key, []).append(_plain(sample[metric]))
    return pools


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    value = value.tolist() if hasattr(value, "tolist") else value
    return float(value) if isinstance(value, int | float) else value


def _documents(members: Sequence["Task"], samples: Mapping[str, list]) -> str:
    """SHA-256 over the items and their prompts: equal hashes mean that two models answered the same questions."""
    digest = hashlib.sha256()
    for task in members:
        for sample in samples[task.task_name]:
            digest.update(f"{sample['doc_hash']}{sample['prompt_hash']}{sample['target_hash']}".encode())
    return digest.hexdigest()


def _estimate(aggregate: Callable[[list], float], items: list, seed: int) -> uncertainty.Estimate:
    """A metric's value as lm-eval aggregates it, with its standard error."""
    name = getattr(aggregate, "__name__", "")
    if name == "mean":
        return uncertainty.mean(items)
    if name in ("perplexity", "weighted_perplexity"):
        return uncertainty.perplexity(items)
    if name == "bits_per_byte":
        value, stderr = uncertainty.rate(items)
        return value / math.log(2), None if stderr is None else stderr / math.log(2)
    return float(aggregate(items)), _bootstrap(aggregate, items, seed)


def _bootstrap(aggregate: Callable[[list], float], items: list, seed: int) -> float | None:
    import numpy

    if len(items) < 2:
        return None
    draws = numpy.random.default_rng(seed).integers(len(items), size=(BOOTSTRAP_DRAWS, len(items)))
    stderr = float(numpy.std([aggregate([items[i] for i in draw]) for draw in draws], ddof=1))
    return stderr if math.isfinite(stderr) else None


def average(scored: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Avg-acc over the tasks with `in_average`, and its standard error; None where there are none."""
    counted = [(task["value"], task["stderr"]) for task in scored.values() if task["in_average"]]
    if not counted:
        return None
    value, stderr = uncertainty.average(counted)
    return {"value": value, "stderr": stderr}


def _check_perplexity(name: str | None, loaded: harness.Tasks) -> None:
    available = loaded[name][0].aggregation() if name is not None else PERPLEXITIES
    if not set(PERPLEXITIES) & set(available):
        raise ReplaceMeError(f"evaluation task {name!r} reports no perplexity; it reports {_list([*available])}")


def _perplexity(name: str | None, loaded: harness.Tasks, samples: Mapping[str, list]) -> dict[str, Any] | None:
    """Perplexity of a task as it reports it (per target, per word or per byte), from per-item log-likelihoods."""
    if name is None:
        return None
    members = loaded[name]
    pools = _pools(members, samples)
    metric = next(metric for metric in PERPLEXITIES if metric in pools)
    value, stderr = uncertainty.perplexity(pools[metric])
    if not math.isfinite(value):
        raise ReplaceMeError(f"evaluation task {name!r}: perplexity overflows; the model's weights are broken")
    return {
        "task": name,
        "metric": metric,
        "value": value,
        "stderr": stderr,
        "n": len(pools[metric]),
        "documents": _documents(members, samples),
        "items": pools[metric],
    }
