"""Look up lm-eval's tasks by name: which exist, what a group stands for, and what they need before loading.

Tasks of the user's own are YAML files in an `include` folder; lm-eval's own are read only if a name needs them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# builders of `datasets` that read plain files
FILE_FORMATS = ("json", "csv", "parquet", "text", "arrow")
Include = Path | str | Sequence[Path | str] | None


def folders_of(include: Include) -> list[Path]:
    """Return the folders of an `include`: none, one or several."""
    return [Path(folder) for folder in ([include] if isinstance(include, str | Path) else include or [])]


def find_tasks(names: Sequence[str], include: Include) -> "TaskManager":
    """Return an index in which every name is known.

    Raises ReplaceMeError for an unknown name, with the closest ones, and for a missing include folder.
    """
    manager = index(names, include)
    for line in unknown_tasks(manager, names, include).values():
        raise ReplaceMeError(line)
    return manager


def index(names: Sequence[str], include: Include) -> "TaskManager":
    """Return an index of tasks; lm-eval's own (10 s to index) are in it only when one of `names` is not in the folders.

    Raises ReplaceMeError for a missing include folder.
    """
    from lm_eval.tasks import TaskManager

    folders = folders_of(include)
    for folder in folders:
        if not folder.is_dir():
            raise ReplaceMeError(f"{folder}: no such folder of evaluation tasks (`include`)")
    paths: list[str | Path] = list(folders)
    manager = TaskManager(include_path=paths, include_defaults=False)
    if any(leaves(manager, name) is None for name in names):
        manager = TaskManager(include_path=paths)
    return manager


def unknown_tasks(manager: "TaskManager", names: Sequence[str], include: Include) -> dict[str, str]:
    """Return for each name that an index lacks a line with the closest ones."""
    folders = folders_of(include)
    return {name: _unknown(name, folders, manager.all_tasks) for name in names if leaves(manager, name) is None}


@dataclass(frozen=True)
class Needs:
    """The needs of tasks: data sets of the Hub with their revisions, and a line for each missing thing."""

    datasets: list[tuple[str, str | None]]
    problems: list[str]


def needs(manager: "TaskManager", names: Sequence[str]) -> Needs:
    """Return what known tasks need before loading; importing their helpers shows missing packages."""
    datasets: dict[tuple[str, str | None], None] = {}
    problems: dict[str, None] = {}
    for leaf in dict.fromkeys(leaf for name in names for leaf in leaves(manager, name) or []):
        config, problem = whole_config(manager.task_index[leaf])
        if problem:
            problems[problem] = None
        source = config.get("dataset_path")
        if isinstance(source, str) and not _is_local_data(config, manager.task_index[leaf].yaml_path):
            datasets[source, (config.get("dataset_kwargs") or {}).get("revision")] = None
    return Needs(list(datasets), list(problems))


def whole_config(entry: Any) -> tuple[dict[str, Any], str | None]:
    """Return a task's config merged with its includes, and the fault of its helpers, if any."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if entry.yaml_path is None:
        return entry.cfg or {}, None
    try:
        return load_yaml(entry.yaml_path, resolve_func=True), None
    except Exception as error:  # a helper may fail in any way
        missing = isinstance(error, ImportError)
        reason = " ".join(str(error).split())
        what = f"a package is missing ({reason}); install it" if missing else f"cannot be read ({reason})"
        line = f"tasks in {entry.yaml_path.parent.name}: {what}"
    try:
        return load_yaml(entry.yaml_path, resolve_func=False), line
    except Exception:
        return {}, line


def leaves(manager: "TaskManager", name: str) -> list[str] | None:
    """Return the names of the tasks that a task, group or tag stands for; None when it or a member is unknown."""
    entry = manager.task_index.get(name)
    if entry is None:
        return None
    config = entry.cfg or {}
    if entry.kind.name == "TAG":
        members = sorted(entry.tags)
    elif entry.kind.name == "GROUP":
        items = config.get("task") or []
        members = [item if isinstance(item, str) else item.get("task") or item.get("group") for item in items]
    else:
        return [name]
    parts = [leaves(manager, member) if isinstance(member, str) else None for member in members]
    return None if None in parts else [leaf for part in parts for leaf in part or []]


def _unknown(name: str, folders: Sequence[Path], known: Sequence[str]) -> str:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(path for folder in folders for path in folder.rglob("*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except (yaml.YAMLError, ValueError, OSError) as error:
            return f"evaluation task {name!r} not found, and {path} cannot be read ({in_one_line(error)}); check it"
    where = ", ".join(str(folder) for folder in folders) or "none given"
    close = get_close_matches(name, known, n=3)
    hint = f"; close: {', '.join(close)}" if close else ""
    return f"unknown evaluation task {name!r}: neither in the include folder ({where}) nor in lm-eval{hint}"


def all_local(manager: "TaskManager", names: Sequence[str]) -> bool:
    """Return whether no task among `names` needs the network."""
    return all(_has_local_data(manager, leaf) for name in names for leaf in leaves(manager, name) or [])


def _has_local_data(manager: "TaskManager", leaf: str) -> bool:
    entry = manager.task_index[leaf]
    return _is_local_data(entry.cfg or {}, entry.yaml_path)


def _is_local_data(config: Mapping[str, Any], yaml_path: Path | None) -> bool:
    path = str(config.get("dataset_path"))
    if path in FILE_FORMATS:
        return "://" not in str((config.get("dataset_kwargs") or {}).get("data_files"))
    return Path(path).is_dir() or bool(yaml_path and (yaml_path.parent / path).is_dir())


def check_distinct(manager: "TaskManager", names: Sequence[str]) -> None:
    """Raise ReplaceMeError where two of `names` stand for the same task."""
    owner: dict[str, str] = {}
    for name in names:
        for leaf in leaves(manager, name) or []:
            if owner.setdefault(leaf, name) != name:
                raise ReplaceMeError(f"evaluation task {leaf!r} is asked for twice, by {owner[leaf]!r} and {name!r}")


def own_tasks(manager: "TaskManager", names: Sequence[str], include: Include) -> set[str]:
    """Return the tasks behind `names` that are YAML files of an `include` folder."""
    folders = [folder.resolve() for folder in folders_of(include)]
    paths = {leaf: manager.task_index[leaf].yaml_path for name in names for leaf in leaves(manager, name) or []}
    return {leaf for leaf, path in paths.items() if path and any(path.resolve().is_relative_to(one) for one in folders)}


def weighs_tasks_alike(manager: "TaskManager", name: str) -> bool:
    """Return whether a group averages over its tasks, rather than over the items of all of them."""
    rules = (manager.task_index[name].cfg or {}).get("aggregate_metric_list") or []
    rules = [rules] if isinstance(rules, Mapping) else rules
    return any(rule.get("weight_by_size", True) is False for rule in rules)
