"""Warn where a model is evaluated on text that it was shortened or healed on, wherever both are known.

Compared are files, by path or content, and splits of data sets of the Hub. A checkpoint's record lists its texts. Of a
config the tasks are read from the YAML files of `include`, without lm-eval, which takes seconds to import; those of
lm-eval itself are known where a model is evaluated.
"""

import glob
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from replaceme.config.calibrations import MICRO
from replaceme.config.schema import Config
from replaceme.config.sources import made_of
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import RECORD, read_json, sha256
from replaceme.evaluation.task_index import FILE_FORMATS, folders_of

if TYPE_CHECKING:
    from lm_eval.api.task import Task

log = logging.getLogger(__name__)
SEEN = "so that what is measured on it was seen before; take other text"


@dataclass(frozen=True)
class Measured:
    """The data that a task evaluates on: local files, or a split of a Hub data set (`name`: its subset)."""

    task: str
    files: tuple[Path, ...] = ()
    dataset: str | None = None
    name: str | None = None
    split: str | None = None


def measured_on(config: Mapping[str, Any], folder: Path) -> Measured:
    """Return the data that a task's config evaluates on; relative paths are under `folder` or the working directory."""
    task, path = str(config.get("task")), config.get("dataset_path")
    split = config.get("test_split") or config.get("validation_split")
    if path not in FILE_FORMATS:
        return Measured(task, (), str(path), config.get("dataset_name"), split)
    files = (config.get("dataset_kwargs") or {}).get("data_files") or ()
    if isinstance(files, Mapping):
        files = files.get(split) or ()  # nothing where a function names them, which is not run here
    patterns = [files] if isinstance(files, str) else list(files)
    return Measured(task, tuple(path for pattern in patterns for path in _files(str(pattern), folder)))


def _files(pattern: str, folder: Path) -> list[Path]:
    """Return the files that a path or pattern of a task matches."""
    for base in (folder, Path.cwd()):
        place = base / pattern
        found = [place] if place.is_file() else _matches(place)
        if found:
            return found
    return []


def _matches(pattern: Path) -> list[Path]:
    # of a whole path, which may be absolute
    return sorted(Path(path) for path in glob.glob(str(pattern)) if Path(path).is_file())  # noqa: PTH207


def overlap(source: Mapping[str, Any], measured: Measured) -> bool:
    """Return whether a text (a section or record of a calibration) is the data that a task evaluates on."""
    dataset = source.get("dataset")
    if dataset is None:
        return False
    if measured.dataset is not None:
        splits = {part.partition("[")[0].strip() for part in str(source.get("split")).split("+")}
        names = {source.get("name"), measured.name}
        return (
            dataset.lower() == measured.dataset.lower()
            and measured.split in splits
            and (len(names) < 2 or None in names)
        )
    return any(_same_file(Path(dataset), source.get("file_sha256"), path) for path in measured.files)


def _same_file(text: Path, digest: str | None, measured: Path) -> bool:
    """Return whether two files are the same by path, else by content, which is read only where the sizes agree."""
    if text.is_file() and measured.samefile(text):
        return True
    if digest is None and text.is_file() and text.stat().st_size == measured.stat().st_size:
        digest = sha256(text)
    return digest is not None and digest == sha256(measured)


def seen_texts(config: Config, evaluation: str, tasks: Sequence[Measured] | None = None) -> list[str]:
    """Return a line for each calibration text of a config that its evaluation measures on, by its own or given
    tasks.
    """
    section = config.evaluations[evaluation]
    names: set[str] = set()
    for table in config.tables.values():
        if table.evaluation == evaluation:
            names |= {*table.named("calibrations"), *(config.healings[one].text for one in table.named("healings"))}
    texts = {one: config.calibrations[one] for one in made_of(config.calibrations, sorted(names))}
    texts = {one: text for one, text in texts.items() if text.dataset not in (None, *MICRO)}
    if texts and tasks is None:
        tasks = [one for task in section.tasks for one in _in_folders(task, section.include)]
    return [
        f"calibrations.{one}: {text.dataset} is what task {task.task!r} of evaluations.{evaluation} measures on, {SEEN}"
        for one, text in texts.items()
        for task in tasks or ()
        if overlap(text.model_dump(include={"dataset", "name", "split"}), task)
    ]


def all_seen_texts(config: Config) -> list[str]:
    """Return the lines of `seen_texts` for all evaluations of a config's tables."""
    used = sorted({table.evaluation for table in config.tables.values() if table.evaluation is not None})
    return [line for evaluation in used for line in seen_texts(config, evaluation)]


def warn(folder: str | Path, tasks: Sequence["Task"]) -> None:
    """Warn of tasks whose data the record of a checkpoint lists as calibration or training text."""
    path = Path(folder) / RECORD
    if not path.is_file():
        return
    try:
        record = read_json(path)
    except ReplaceMeError:
        return  # loading it says what is wrong
    texts = list(_texts(record))
    for task in tasks:
        measured = measured_on(vars(task.config), Path.cwd())
        for text in texts:
            if overlap(text, measured):
                log.warning(
                    "%s was made with %s, which task %r measures on, %s", folder, text["dataset"], task.task_name, SEEN
                )
                break


def _texts(record: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all records of calibrations within a record."""
    if isinstance(record, Mapping):
        if isinstance(record.get("dataset"), str):
            yield record
        for part in record.values():
            yield from _texts(part)
    elif isinstance(record, list):
        for part in record:
            yield from _texts(part)


class _Loader(yaml.SafeLoader):
    """A YAML loader for tasks that does not import the functions named by `!function`."""


_Loader.add_constructor("!function", lambda loader, node: None)


def _in_folders(name: str, include: str | None) -> list[Measured]:
    """Return the data of a task, group or tag of the `include` folders; nothing for missing or unreadable files."""
    files = [path for folder in folders_of(include) for path in sorted(folder.rglob("*.yaml"))]
    wanted, found = [name], {}
    for one in wanted:
        for path, config in _naming(one, files):
            if "group" in config and config["group"] == one:
                wanted += [member for member in map(_member, _listed(config.get("task"))) if member not in wanted]
            elif "group" not in config and "task" in config and one in (config["task"], *_listed(config.get("tag"))):
                found[path] = measured_on(config, path.parent)
    return list(found.values())


def _naming(name: Any, files: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the task files that may contain a name; parsing all of thousands of files would take long."""
    for path in files:
        try:
            content = path.read_bytes()
            if str(name).encode() in content or b"include" in content:
                yield path, _with_included(path, 0)
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue  # said where tasks are looked up


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _member(item: Any) -> Any:
    return item.get("task") or item.get("group") if isinstance(item, Mapping) else item


def _with_included(path: Path, depth: int) -> dict[str, Any]:
    """Return a YAML merged with the files that it includes, as lm-eval merges them."""
    config = yaml.load(path.read_bytes(), Loader=_Loader)
    if not isinstance(config, dict) or depth > 9:
        raise ValueError
    merged: dict[str, Any] = {}
    for one in _listed(config.pop("include", None)):
        merged |= _with_included(path.parent / str(one), depth + 1)
    return merged | config
