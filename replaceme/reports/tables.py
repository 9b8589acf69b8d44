"""Collect one table from the results on disk: a row per pruned model, baselines first, paired differences to dropping
blocks.

It reads the results of the steps (evaluation, divergence, speed, cut, fit) and computes only differences and errors, by
`uncertainty`. Cells that were not measured are missing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.config.evaluations import KERNELS
from replaceme.config.exports import COLUMN
from replaceme.config.methods import NARROWING
from replaceme.config.result_paths import row_of
from replaceme.config.tables import BASELINE, CACHE, DIVERGENCE, KEYS, RATES, SPEED
from replaceme.core import uncertainty
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json
from replaceme.provenance.environment import described

if TYPE_CHECKING:
    import pandas

SIZE = ("parameters", "file_bytes")
TEXT = ("text_perplexity", "text_perplexity_stderr")


@dataclass(frozen=True)
class _Result:
    """The results of the steps for one model: `names` are model, calibration, cut, fit and healing."""

    folder: Path
    names: tuple[str, str | None, str | None, str, str | None]
    evaluation: Mapping[str, Any]
    speed: Mapping[str, Any]
    divergence: Mapping[str, Any]
    cut: Cut | None
    fit: Mapping[str, Any]
    exports: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_identity(self) -> bool:
        return self.fit.get("transform") == "identity" and self.names[4] is None


def collect(
    rows: Sequence[Path],
    baselines: Sequence[Path],
    evaluation: str,
    speed: bool = True,
    divergence: bool = False,
    by: bool = False,
    exports: Sequence[str] = (),
) -> "pandas.DataFrame":
    """Return one row per folder: each baseline, then the rows of its model as given; columns KEYS, tasks, measures,
    SIZE.

    `rows` are folders <model>/<calibration>/<cut>/<fit>, or healed/<healing> inside one (only then there is a column
    `healing`), `baselines` folders <model>/baseline; `evaluation` names a file in their `evaluation` folder. With
    `speed` they have a speed.json too, and the table the columns SPEED; with `divergence` the rows have a file of that
    name in their `divergence` folder too, and the table the columns DIVERGENCE and their errors; with `by` there is a
    column of that name, which says what finds the numbers of each fit; `exports` are programs whose outcomes lie in
    their `exports` folder, and have a column each. Accuracies are fractions, `rp` and only
    it is in percent. `*_vs_identity` are paired over items with the identity fit of the same cut, not healed. Raises
    ReplaceMeError naming a missing file or baseline.
    """
    import pandas

    files = (f"evaluation/{evaluation}.json", "speed.json" if speed else None)
    of_rows = (*files, f"divergence/{evaluation}.json" if divergence else None)
    references = {Path(folder).parent.name: _baseline(Path(folder), *files) for folder in baselines}
    results = [replace(_row(Path(folder), *of_rows), exports=_exports(Path(folder), exports)) for folder in rows]
    for result in results:
        if result.names[0] not in references:
            raise ReplaceMeError(
                f"{result.folder}: no baseline of model {result.names[0]!r}; name its folder by --baseline"
            )
    identities = {result.names[:3]: result for result in results if result.is_identity}
    records = []
    for model, reference in references.items():
        others = [result.divergence for result in results if result.names[0] == model and result.divergence]
        records.append(_record(reference, reference, None) | (_on_text(others[0], "original") if others else {}))
        for result in results:
            if result.names[0] == model:
                identity = identities.get(result.names[:3])
                records.append(_record(result, reference, None if identity is result else identity))
    everything = [*references.values(), *results]
    columns = [name for name in _columns(everything) if by or name != "by"]
    frame = pandas.DataFrame([[record.get(column) for column in columns] for record in records], columns=columns)
    frame.attrs["tasks"] = _task_notes(everything)
    frame.attrs["own_code"] = _with_code(results)
    frame.attrs["speeds"] = _speed_notes(everything)
    own = [_own_columns(result) for result in everything]
    frame.attrs["perplexities"] = sorted({name for tasks in own for name in tasks if _is_perplexity(tasks[name])})
    return frame


def _baseline(folder: Path, evaluation: str, speed: str | None) -> _Result:
    parts = _read(folder, evaluation), _read(folder, speed)
    return _Result(folder, (folder.parent.name, None, None, BASELINE, None), *parts, {}, None, {})


def _row(folder: Path, evaluation: str, speed: str | None, divergence: str | None) -> _Result:
    row = row_of(folder)
    if row is None:
        raise ReplaceMeError(
            f"{folder}: a row is a folder <model>/<calibration>/<cut>/<fit>, or healed/<healing> in it"
        )
    fitted = folder if row.healing is None else folder.parents[1]
    fit = _read(fitted, "fit.json")
    return _Result(
        folder,
        row,
        _read(folder, evaluation),
        _read(folder, speed),
        _read(folder, divergence),
        Cut.of(_read(fitted.parent, "cut.json"), f"{fitted.parent}/cut.json"),
        # what the map leaves of its target was not measured again
        fit if row.healing is None else {key: value for key, value in fit.items() if key != "residual"},
    )


def _read(folder: Path, name: str | None) -> Mapping[str, Any]:
    if name is None:
        return {}
    if not (folder / name).is_file():
        raise ReplaceMeError(f"{folder}: {name} is missing; run the steps that make it before the table")
    return read_json(folder / name)


def _exports(folder: Path, programs: Sequence[str]) -> dict[str, str]:
    """Return the outcome of each program for a row."""
    return {program: _read(folder, f"exports/{program}.json")["programs"][program]["outcome"] for program in programs}


def _columns(results: Sequence[_Result]) -> list[str]:
    tasks = list(dict.fromkeys(name for result in results for name in _own_columns(result)))
    measures = [
        *tasks_and_errors(tasks),
        "average",
        "average_stderr",
        "rp",
        "perplexity",
        "perplexity_stderr",
        *(tasks_and_errors(DIVERGENCE) if any(result.divergence for result in results) else ()),
        "residual",
        "average_vs_identity",
        "average_vs_identity_stderr",
        "log_perplexity_vs_identity",
        "log_perplexity_vs_identity_stderr",
    ]
    healed = any(result.names[4] for result in results)
    measured = any(result.speed for result in results)
    exports = dict.fromkeys(COLUMN + program for result in results for program in result.exports)
    keys = (key for key in KEYS if healed or key != "healing")
    cache = [CACHE] if any(result.evaluation.get(CACHE) is not None for result in results) else []
    return [*keys, *measures, *SIZE, *cache, *exports, *(SPEED if measured else ())]


def tasks_and_errors(tasks: Sequence[str]) -> list[str]:
    """Return the columns of tasks, or of measures: each name, then its standard error."""
    return [column for task in tasks for column in (task, f"{task}_stderr")]


def task_columns(columns: Sequence[str]) -> list[str]:
    """Return the names of the tasks in a table's columns, which lie between `compression` and `average`."""
    names = list(columns)
    return names[names.index("compression") + 1 : names.index("average") : 2]


def _with_code(results: Sequence[_Result]) -> list[str]:
    """Return the fits whose models bring code; where only some rows of one do, with their cut, or the whole row."""
    plain = [result.names for result in results if not result.fit.get("own_code")]
    fits, cuts = {names[3] for names in plain}, {names[2:4] for names in plain}
    found = set()
    for one in results:
        cut, fit = one.names[2:4]
        if not one.fit.get("own_code"):
            continue
        if (cut, fit) in cuts:
            found.add(_row_name(one))
        else:
            found.add(f"{cut} with {fit}" if fit in fits else fit)
    return sorted(found)


def _row_name(result: _Result) -> str:
    """Return the names of a row as a config writes them, those of a baseline too."""
    return "/".join(filter(None, result.names))


def _own_columns(result: _Result) -> dict[str, Mapping[str, Any]]:
    """Return the tasks with a column under their own name: all but the one that fills the column `perplexity`."""
    main = (result.evaluation["perplexity"] or {}).get("task")
    tasks = result.evaluation["tasks"].items()
    return {name: task for name, task in tasks if name != main or not _is_perplexity(task)}


def _is_perplexity(task: Mapping[str, Any]) -> bool:
    return "perplexity" in task["metric"]


def _task_notes(results: Sequence[_Result]) -> dict[str, str]:
    """Describe how each task was scored: metric, examples in context, items, version."""
    notes: dict[str, str] = {}
    for result in results:
        for name, task in _own_columns(result).items():
            # lm-eval's own placeholder for a task without a version is "Yaml"
            version = f", v{task['version']}" if task["version"] not in (None, "Yaml") else ""
            outside = "" if task["in_average"] else ", not in the average"
            notes.setdefault(name, f"{task['metric']}, {task['fewshot']}-shot, n = {task['n']}{version}{outside}")
    return notes


def _speed_notes(results: Sequence[_Result]) -> dict[str, str]:
    """Describe how the speed of each row was measured: lengths, type, machine."""
    notes: dict[str, str] = {}
    for result in results:
        if not (one := result.speed):
            continue
        new = f" and {one['new_tokens']} new ones" if one["new_tokens"] else ""
        device = f"{one['gpus']} GPUs" if one.get("gpus", 1) > 1 else one["device"]
        where = f"{one['dtype']} on {device}, {one['threads']} threads; {described(one['hardware'])}"
        clock = " by the time of the GPU's kernels alone" if one.get("clock") == KERNELS else ""
        notes[_row_name(result)] = f"{one['batch_size']} x {one['prompt_tokens']} tokens{new}{clock}, {where}"
    return notes


def _record(result: _Result, reference: _Result, identity: _Result | None) -> dict[str, Any]:
    cut, size = result.cut, _size(result)
    record = dict(zip(KEYS, result.names, strict=False))
    narrower = result.fit.get("method") in NARROWING
    record["by"] = result.fit.get("by")
    record["removed"] = 0 if narrower or cut is None else cut.blocks
    record["span"] = "none, narrower" if narrower else cut and cut.span
    record["metric"], record["position"] = cut and cut.metric, cut and cut.position
    record["compression"] = 1 - size["parameters"] / _size(reference)["parameters"]
    for name, task in _own_columns(result).items():
        record[name], record[f"{name}_stderr"] = task["value"], task["stderr"]
    average, perplexity = result.evaluation["average"], result.evaluation["perplexity"]
    if average is not None:
        record["average"], record["average_stderr"] = average["value"], average["stderr"]
        whole = reference.evaluation["average"]["value"]
        record["rp"] = 100 * average["value"] / whole if whole else None
    if perplexity is not None:
        record["perplexity"], record["perplexity_stderr"] = perplexity["value"], perplexity["stderr"]
    if result.divergence:
        record["kl"], record["kl_stderr"] = (result.divergence["kl"][key] for key in ("value", "stderr"))
        record |= _on_text(result.divergence, "model")
    record["residual"] = result.fit.get("residual")
    if identity is not None:
        record |= _differences(result, identity)
    record |= (
        size
        | {CACHE: result.evaluation.get(CACHE)}
        | {COLUMN + program: outcome for program, outcome in result.exports.items()}
    )
    if result.speed:
        record |= {name: result.speed[name]["median"] for name in RATES}
        record["latency_s"] = result.speed.get("latency_s", {}).get("median")
        record["peak_memory_bytes"] = result.speed["peak_memory_bytes"]
    return record


def _on_text(divergence: Mapping[str, Any], which: str) -> dict[str, float]:
    """Return the perplexity of the original or the model on the text of their divergence."""
    found = divergence["perplexity"][which]
    return dict(zip(TEXT, (found["value"], found["stderr"]), strict=True))


def _size(result: _Result) -> dict[str, int]:
    try:
        return {name: result.evaluation[name] for name in SIZE}
    except KeyError as error:
        raise ReplaceMeError(f"{result.folder}: its evaluation does not say {error}; evaluate again") from None


def _differences(result: _Result, identity: _Result) -> dict[str, float | None]:
    """Return average and log perplexity minus those of the identity fit, paired over items."""
    found: dict[str, float | None] = {}
    ours, theirs = result.evaluation, identity.evaluation
    counted = [name for name, task in ours["tasks"].items() if task["in_average"]]
    for name in counted:
        _check_same(result, identity, ours["tasks"][name], theirs["tasks"].get(name), name)
    pairs = [(ours["tasks"][name]["items"], theirs["tasks"][name]["items"]) for name in counted]
    if pairs and all(isinstance(item, float) for pair in pairs for items in pair for item in items):
        estimate = uncertainty.average([uncertainty.paired_mean(*pair) for pair in pairs])
        found["average_vs_identity"], found["average_vs_identity_stderr"] = estimate
    if ours["perplexity"] is not None:
        ppl, other = ours["perplexity"], theirs["perplexity"]
        _check_same(result, identity, ppl, other, "perplexity")
        estimate = uncertainty.paired_log_perplexity(ppl["items"], other["items"])
        found["log_perplexity_vs_identity"], found["log_perplexity_vs_identity_stderr"] = estimate
    return found


def _check_same(result: _Result, identity: _Result, ours: Mapping, theirs: Mapping | None, name: str) -> None:
    if theirs is None or ours["documents"] != theirs["documents"] or ours["metric"] != theirs["metric"]:
        raise ReplaceMeError(
            f"{result.folder} and {identity.folder}: {name} was evaluated on different items; evaluate both again"
        )
