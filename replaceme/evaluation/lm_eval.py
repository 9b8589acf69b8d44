"""lm-eval's side of an evaluation: tasks with their data (local YAMLs without network), and its wrapper of a model.

Tasks of the user's own are YAML files in an `include` folder; in them a relative path of `data_files` means relative
to the YAML's folder. A group or tag of lm-eval stands for the pool of its tasks: every item counts alike, which is what
lm-eval's groups mean by `weight_by_size: true`.
"""

import contextlib
import functools
import glob
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.progress import bar
from replaceme.evaluation.task_index import FILE_FORMATS, Include, check_distinct, own_tasks, weighs_tasks_alike

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)
Tasks = dict[str, list["Task"]]


@contextlib.contextmanager
def quiet(level: int = logging.WARNING) -> Iterator[None]:
    """Drop lm-eval's log records below `level` inside the block."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def one_bar() -> Iterator[None]:
    """Show one progress bar on stderr, paced like `replaceme.core.progress`, instead of the many of lm-eval and
    datasets.
    """
    import datasets

    enabled = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    shown = {
        "lm_eval.api.task": _without_bar,
        "lm_eval.api.model": _without_bar,
        # with it comes all of transformers, which loading a task does without
        "lm_eval.models.huggingface": functools.partial(bar, unit="request"),
    }
    before = {name: sys.modules[name].tqdm for name in shown if name in sys.modules}
    for name in before:
        sys.modules[name].tqdm = shown[name]
    try:
        yield
    finally:
        for name, its_own in before.items():
            sys.modules[name].tqdm = its_own
        if enabled:
            datasets.enable_progress_bars()


def _without_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    """Yield the items alone, in place of tqdm's bar over them."""
    return items


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Compile a task's templates once; lm-eval compiles them anew for each item, a millisecond each time.

    Their globals are put into one dict, as jinja copies them for each item, which of its own chain of dicts takes long.
    """
    from lm_eval.utils import env

    compiled = env.from_string

    def compiled_with_globals(source: str) -> Any:
        template = compiled(source)
        template.globals = dict(template.globals)
        return template

    env.from_string = functools.cache(compiled_with_globals)
    try:
        yield
    finally:
        del env.from_string


def load_tasks(
    manager: "TaskManager", fewshot: Mapping[str, int | None], include: Include, cache: str | Path, seed: int
) -> Tasks:
    """Load tasks with their data; keys of `fewshot` are the names, values the examples in context (None: the task's).

    Arrow copies of local data files go to `cache`, not to the user's home.
    """
    check_distinct(manager, list(fewshot))
    for leaf in own_tasks(manager, list(fewshot), include):
        _anchor(manager.task_index[leaf], leaf, str(cache))
    tasks: Tasks = {}
    for name, shots in fewshot.items():
        if weighs_tasks_alike(manager, name):
            log.warning(
                "evaluation task %r: its group weighs tasks alike (`weight_by_size: false`); here items count alike",
                name,
            )
        tasks[name] = _load(manager, name)
        for task in tasks[name]:
            if shots is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=seed)
    return tasks


def _load(manager: "TaskManager", name: str) -> list["Task"]:
    try:
        with one_bar(), compiled_once():
            return list(manager.load([name])["tasks"].values())
    except ReplaceMeError:
        raise
    except Exception as error:  # a hub, a file or a YAML: each raises types of its own
        raise ReplaceMeError(
            f"evaluation task {name!r} cannot be loaded ({_reason(error)}); check its YAML and data, and the "
            "network if its data lie on the Hub"
        ) from error


def render_once(task: "Task") -> None:
    """Make a task written in templates render them once for each document, however often its scoring asks for them.

    Functions of the task's own, which may change a document, are called as often as without this.
    """
    from lm_eval.api.task import ConfigurableTask

    fields = ("doc_to_text", "doc_to_target", "doc_to_choice")
    if type(task) is ConfigurableTask and not any(callable(task.get_config(field)) for field in fields):
        for field in fields:
            setattr(task, field, _remembered(getattr(task, field)))


def _remembered(render: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that remembers what it has made of each document, which is kept; lists are given as copies."""
    made: dict[tuple, tuple[Any, Any]] = {}

    def rendered(document: Any, *templates: Any, **options: Any) -> Any:
        if options or not all(isinstance(one, str) for one in templates):
            return render(document, *templates, **options)
        key = id(document), *templates  # of examples templates of their own may be given
        if key not in made:
            made[key] = document, render(document, *templates)
        found = made[key][1]
        return [*found] if isinstance(found, list) else found

    return rendered


def _reason(error: Exception) -> str:
    """Explain why a task cannot be loaded, where the messages of lm-eval and datasets say nothing."""
    if isinstance(error, KeyError) and error.args == (None,):
        return "a metric that lm-eval does not know has no `aggregation` in metric_list"
    if isinstance(error, KeyError) and re.fullmatch(r"\w+", str(error.args[0])):
        return f"there is no {error.args[0]!r}, a split or a column"
    if isinstance(error, StopIteration) or (isinstance(error, IndexError) and "size 0" in str(error)):
        return "the split that is evaluated has no items"
    # datasets says what is wrong with a file in the error before its own
    told = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    return f"{type(told).__name__}: {in_one_line(told)}"


def _anchor(entry: Any, name: str, cache: str) -> None:
    """Replace an index entry by its parsed config with the data paths made absolute."""
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = entry.yaml_path.parent
    try:
        config = load_yaml(entry.yaml_path, resolve_func=True)
    except Exception as error:  # a !function of the user's may fail in any way
        raise ReplaceMeError(
            f"{entry.yaml_path}: cannot be read ({in_one_line(error)}); check it and what it names"
        ) from error
    kwargs = dict(config.get("dataset_kwargs") or {})
    if config.get("dataset_path") in FILE_FORMATS:
        if "data_files" in kwargs:
            kwargs["data_files"] = _absolute(kwargs["data_files"], folder, name)
        kwargs.setdefault("cache_dir", cache)
        config["dataset_kwargs"] = kwargs
    elif isinstance(config.get("dataset_path"), str) and (folder / config["dataset_path"]).is_dir():
        config["dataset_path"] = _taken((folder / config["dataset_path"]).resolve(), name, "$", "::", "[")
    entry.yaml_path, entry.cfg = None, config


def _absolute(files: Any, folder: Path, task: str) -> Any:
    """Return data files as absolute paths: as given, else under the YAML's folder, else under the working directory."""
    if isinstance(files, Mapping):
        return {split: _absolute(value, folder, task) for split, value in files.items()}
    if not isinstance(files, str):
        return [_absolute(value, folder, task) for value in files]
    if "://" in files:
        return files
    for base in (folder, Path.cwd()):
        if (base / files).exists():
            return glob.escape(_taken(base.resolve() / files, task, "$", "::"))
        if not Path(files).is_absolute() and any(base.glob(files)):
            return f"{glob.escape(_taken(base.resolve(), task, '$', '::'))}/{files}"
    raise ReplaceMeError(f"evaluation task {task!r}: data file {files} exists neither in {folder} nor where you are")


def _taken(path: Path, task: str, *otherwise: str) -> str:
    """Return a path as text; raises ReplaceMeError where it contains characters that `datasets` interprets
    (`otherwise`).
    """
    found = next((one for one in otherwise if one in str(path)), None)
    if found is not None:
        raise ReplaceMeError(
            f"evaluation task {task!r}: {path}: datasets opens nothing whose path holds {found!r}; rename it"
        )
    return str(path)


def import_libraries() -> None:
    """Import what models and tasks are made with, before two threads do: one would find a library half imported."""
    import replaceme.evaluation.prefixes  # noqa: F401


def language_model(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, most: int | None = None
) -> Any:
    """Return lm-eval's wrapper of a loaded model."""
    with quiet(logging.ERROR):  # it warns that a loaded model ignores its own loading options
        from replaceme.evaluation.prefixes import LanguageModel

        return LanguageModel(model, tokenizer, batch_size, most)
