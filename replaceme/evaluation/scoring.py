"""Values of metrics over the items of a task, as lm-eval aggregates them, with standard errors.

Standard errors are in closed form for lm-eval's means and perplexities (see `uncertainty`), a seeded bootstrap for all
others. A task's own aggregation may return or raise anything: a metric without a number is left out, with a warning.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING, Any

from replaceme.core import uncertainty
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.evaluation.items import FAULTS, Asked, filters_of, said

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
BOOTSTRAP_DRAWS = 200
MISSING = object()  # of an item that the task gives no value of a metric
Aggregation = Callable[[list], Any]


@dataclass(frozen=True)
class Pool:
    """Values of one metric after one filter, one for each item in the order of tasks and items, some MISSING."""

    metric: str
    values: list[Any]

    @property
    def given(self) -> list[Any]:
        """Values that are not MISSING."""
        return [value for value in self.values if value is not MISSING]


def named(metric: str, name: str) -> str:
    """Return lm-eval's name of a metric after a filter, `metric,filter`, without a filter named `none`."""
    return metric if name == "none" else f"{metric},{name}"


def pools_of(members: Sequence[Asked]) -> dict[str, Pool]:
    """Return the values of all metrics by name, over the items of a task or of all tasks of a group."""
    names = list(dict.fromkeys(name for one in members for name in filters_of(one.task)))
    pools = {}
    for name in names:
        scored = [one.values.get(name) or [{}] * len(one.items) for one in members]
        metrics = dict.fromkeys(metric for values in scored for value in values for metric in value)
        for metric in metrics:
            values = [value.get(metric, MISSING) for values in scored for value in values]
            pools[named(metric, name)] = Pool(metric, values)
    return pools


def plain(value: Any) -> Any:
    """Convert an item's value to plain data: floats, lists, dicts, text."""
    if hasattr(value, "tolist"):  # of numpy and of torch
        value = value.tolist()
    if isinstance(value, Real | Decimal):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(part) for part in value]
    return value if value is None else printable(value)


def stored(value: Any) -> Any:
    """Convert an item's value for a record: plain data with null for numbers that are not finite."""
    if value is MISSING:
        return None
    value = plain(value)
    if isinstance(value, dict):
        return {key: stored(part) for key, part in value.items()}
    if isinstance(value, list):
        return [stored(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class NoNumber(ValueError):
    """An aggregation gave no finite number."""


def number(value: Any) -> float:
    """Return a finite number as a float; raises NoNumber for everything else."""
    found = plain(value)
    while isinstance(found, list) and len(found) == 1 and hasattr(value, "tolist"):
        found = found[0]  # an array of one number
    if not isinstance(found, float):
        raise NoNumber(f"its aggregation gives {type(value).__name__}, not a number")
    if not math.isfinite(found):
        raise NoNumber(f"its aggregation gives {found}")
    return found


def estimate(aggregate: Aggregation, items: Sequence[Any], seed: int) -> dict[str, uncertainty.Estimate]:
    """Return a metric's value with its standard error under the key ''; for a dict those of its numeric entries.

    Raises NoNumber where there is none, and whatever the aggregation raises.
    """
    from lm_eval.api import metrics

    closed = {
        metrics.mean: _mean,
        metrics.perplexity: uncertainty.perplexity,
        metrics.weighted_perplexity: uncertainty.perplexity,
        metrics.bits_per_byte: _bits,
    }
    if aggregate in closed:
        value, stderr = closed[aggregate]([plain(item) for item in items])
        return {"": (number(value), stderr if stderr is not None and math.isfinite(stderr) else None)}
    value = aggregate(list(items))
    if isinstance(value, Mapping):
        entries = {f".{printable(key)}": (plain(part), None) for key, part in value.items()}
        found = {key: part for key, part in entries.items() if isinstance(part[0], float) and math.isfinite(part[0])}
        if not found:
            raise NoNumber("its aggregation gives a dict without numbers")
        return found
    return {"": (number(value), _bootstrap(aggregate, items, seed))}


def _mean(items: list[Any]) -> uncertainty.Estimate:
    if not all(isinstance(item, float) for item in items):
        raise NoNumber("a mean over items that are not numbers")
    return uncertainty.mean(items)


def _bits(items: list[Any]) -> uncertainty.Estimate:
    value, stderr = uncertainty.rate(items)
    return value / math.log(2), None if stderr is None else stderr / math.log(2)


def _bootstrap(aggregate: Aggregation, items: Sequence[Any], seed: int) -> float | None:
    """Return the standard deviation over resamples of the items; None where one of them has no finite value."""
    import numpy

    if len(items) < 2:
        return None
    draws = numpy.random.default_rng(seed).integers(len(items), size=(BOOTSTRAP_DRAWS, len(items)))
    try:
        return float(numpy.std([number(aggregate([items[i] for i in draw])) for draw in draws], ddof=1))
    except FAULTS:
        return None


@dataclass(frozen=True)
class Estimates:
    """Estimates by metric name, and the reasons why other metrics have none."""

    found: dict[str, uncertainty.Estimate]
    missing: dict[str, str]


def estimates(name: str, members: Sequence[Asked], pools: Mapping[str, Pool], seed: int) -> Estimates:
    """Estimate all metrics of a task or group, with a warning for each that has no value or no standard error."""
    answer = Estimates({}, {})
    for one in members:
        for which, reason in one.failures.items():
            log.warning("evaluation task %r: scoring after filter %r fails (%s)", one.task.task_name, which, reason)
            answer.missing.setdefault(which, reason)
    for key, pool in pools.items():
        try:
            found = estimate(aggregation(members[0].task, pool.metric), pool.given, seed)
        except FAULTS as error:
            reason = str(error) if isinstance(error, NoNumber) else said(error)
            log.warning("evaluation task %r: metric %r is left out (%s)", name, key, reason)
            answer.missing[key] = reason
            continue
        metric, comma, which = key.partition(",")
        answer.found.update({f"{metric}{entry}{comma}{which}": value for entry, value in found.items()})
        if "" not in found:
            answer.missing[key] = "its aggregation gives a dict, not a number"
            log.warning("evaluation task %r: metric %r is a dict; its numbers are reported one by one", name, key)
        elif found[""][1] is None and len(pool.given) > 1:
            log.warning("evaluation task %r: metric %r has no standard error: a resample has no value", name, key)
    return answer


def aggregation(task: "Task", metric: str) -> Aggregation:
    """Return how a task aggregates a metric: its own function, else lm-eval's mean."""
    from lm_eval.api.metrics import mean

    return task.aggregation().get(metric, mean)


def check_value(name: str, metric: str, pools: Mapping[str, Pool], all_metrics: Estimates) -> None:
    """Raise ReplaceMeError where the metric that stands for a task has no value; warn where some items have none."""
    if metric not in all_metrics.found:
        which = metric.partition(",")[2] or "none"
        known = ", ".join(all_metrics.found) or "none"
        reason = all_metrics.missing.get(metric) or all_metrics.missing.get(which) or "none of its items has it"
        raise ReplaceMeError(
            f"evaluation task {name!r}: metric {metric!r} has no value ({reason}); mend the task, or name another "
            f"`metric` (it has {known})"
        )
    given, items = len(pools[metric].given), len(pools[metric].values)
    if given < items:
        log.warning(
            "evaluation task %r: %d of %d items have metric %r; the others do not count", name, given, items, metric
        )


def value_of(task: "Task", pool: Pool, seed: int) -> tuple[float | None, float | None]:
    """Return a metric's value and standard error over the pool of one task, None where missing."""
    try:
        return (
            estimate(aggregation(task, pool.metric), pool.given, seed).get("", (None, None))
            if pool.given
            else (None, None)
        )
    except FAULTS:
        return None, None


def perplexity_of(name: str, metric: str, items: Sequence[Any]) -> uncertainty.Estimate:
    """Return the perplexity of log-likelihoods with its standard error; raises ReplaceMeError where it is not
    finite.
    """
    try:
        value, stderr = uncertainty.perplexity(items)
        return number(value), stderr
    except FAULTS as error:
        raise ReplaceMeError(
            f"evaluation task {name!r}: {metric} overflows, or its items are no log-likelihoods ({said(error)}); the "
            "model's weights or the task are broken"
        ) from error
