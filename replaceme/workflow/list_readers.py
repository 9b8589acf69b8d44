"""List the jobs of a run that read the weights of models with `keep_models: false` (see `passing_weights`)."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replaceme.config.result_paths import RESULTS, checkpoint_files, model_at, row_folder, row_of
from replaceme.config.schema import Config
from replaceme.core.files import remove, write_json
from replaceme.models.removed_weights import are_removed, missing_weights
from replaceme.workflow.passing_weights import MAKING, READING, Passing, list_at
from replaceme.workflow.planned import command_of


def write_readers(dag: Any, config: Config, room: int) -> None:
    """List the models whose weights pass in a run of Snakemake that is about to start, `room` of them at once.

    A model that is kept is listed where its weights are missing, as those of a fit behind a healed row may be.
    """
    makers = {_made(job): job for job in dag.jobs if job.rule.name in MAKING}
    readers, found = _readers(dag), {}
    pending, passing = list(readers), config.passing
    while pending:
        folder = pending.pop()
        kept = row_of(Path(folder).parent) not in passing
        if folder in found or (kept and not missing_weights(folder)):
            continue
        job, source = makers[folder], _source(dag, makers[folder])
        gpus = int(job.resources.get("gpu") or 0)
        found[folder] = Passing(kept, readers.get(folder, {}), command_of(job), job.threads, gpus, source)
        pending += [source] if source else []
    path = list_at(RESULTS)
    remove(path)
    if found:
        write_json(path, {"room": room, "models": {folder: asdict(one) for folder, one in found.items()}})


def _readers(dag: Any) -> Mapping[str, dict[str, list[str]]]:
    """Return the outputs of the jobs that will read each model made here, by their `--out`."""
    found: dict[str, dict[str, list[str]]] = {}
    for job in dag.needrun_jobs():
        source = _source(dag, job)
        command = command_of(job) if source else []
        if command and command[0] in READING:
            out = command[command.index("--out") + 1]
            found.setdefault(source, {})[out] = [str(path) for path in job.output]
    return found


def _source(dag: Any, job: Any) -> str | None:
    """Return the folder of the model made here that a job reads, if any."""
    return next((_made(one) for one in dag.dependencies[job] if one.rule.name in MAKING), None)


def _made(job: Any) -> str:
    return model_at(str(job.output.record))


def removed_models(config: Config) -> list[str]:
    """Return a line on the models of a config whose weights pass, for a dry run; none where all are kept."""
    folders = [model_at(checkpoint_files(row_folder(row))["record"]) for row in config.passing]
    if not folders:
        return []
    gone = sum(are_removed(folder) for folder in folders)
    return [
        f"keep_models: false: the weights of {len(folders)} models are removed after their last use; {gone} have none "
        "now, which jobs that read them make again"
    ]
