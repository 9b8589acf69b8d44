"""Find what a config needs from elsewhere and lacks, before the first GPU hour: the Hub, lm-eval, packages, room.

Only config.json of models, the first record of data sets, and their descriptions are downloaded.
"""

import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from replaceme.calibration.conversations import messages_of
from replaceme.calibration.documents import names_file, text_of
from replaceme.calibration.images import GENERATED, image_of
from replaceme.calibration.pictures import pictures_of
from replaceme.calibration.samples import PassedOver
from replaceme.config.calibrations import MICRO, CalibrationConfig
from replaceme.config.evaluations import KERNELS, WALL, EvaluationConfig, ZeroShotConfig
from replaceme.config.schema import Config
from replaceme.config.units import TIMED
from replaceme.core.errors import ReplaceMeError
from replaceme.evaluation import lm_eval as harness
from replaceme.evaluation import task_index, task_trials
from replaceme.evaluation.labelled_images import check_kind, check_package
from replaceme.evaluation.labelled_samples import CLASSES, TYPE
from replaceme.evaluation.overlap import all_seen_texts, seen_texts
from replaceme.models.checkpoints import names_folder
from replaceme.models.config_defaults import accepted
from replaceme.models.model_config import pick_device
from replaceme.planning import hub
from replaceme.planning.capacity import disk_problems, memory_problems
from replaceme.planning.check_local import local_problems, uses_of
from replaceme.planning.outline import Outline, outline_at

log = logging.getLogger(__name__)
REQUIREMENT = re.compile(r"[\w.-]+")


class _Asked:
    """Questions to the Hub: lines for its refusals, and once it does not answer, the names of unchecked things."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.unchecked: list[str] = []
        self.reason: str | None = None

    def __call__(self, where: str, what: str, question: Callable[..., Any], *arguments: Any) -> Any:
        """Ask a question; return the answer, or None."""
        if self.reason is None:
            try:
                return question(*arguments)
            except hub.Unreachable as error:
                self.reason = str(error)
            except ReplaceMeError as error:
                self.refused.append(f"{where}: {error}")
                return None
        self.unchecked.append(what)
        return None

    def lines(self) -> list[str]:
        """Return a line for each refusal, and one for the host if it gave no answer."""
        if not self.unchecked:
            return self.refused
        listed = ", ".join(dict.fromkeys(self.unchecked))
        return [*self.refused, f"{hub.host()}: no answer ({self.reason}); not checked: {listed}"]


def problems(config: Config, results: Path = Path("results")) -> list[str]:
    """Return a line for each reason why a run of all tables would fail, with the remedy; none when all is well.

    `results`: where the merged models go. The network is used only where tables name the Hub. Evaluation on text that a
    model was shortened or healed on is a warning.
    """
    for line in all_seen_texts(config):
        log.warning("%s", line)
    asked, used = _Asked(), config.tables.values()
    models = sorted({model for table in used for model in table.named("models")})
    lines, downloads = [*missing_packages(), *local_problems(config)], {}
    outlines: dict[str, Outline] = {}
    for name in models:
        section = config.models[name]
        if names_folder(section.source):
            outline = _local_outline(section.source, section.dequantise)
        else:
            where = f"models.{name}"
            here = hub.cached_folder(section.source, section.revision)
            of_hub = (section.source, section.revision, section.dequantise)
            outline = asked(where, section.source, hub.model_outline, *of_hub)
            if outline is None and here is not None:
                outline = _local_outline(here, section.dequantise)
                asked.unchecked = [one for one in asked.unchecked if one != section.source]
            elif outline is not None and here is None:
                downloads[section.source] = outline.file_bytes
            lines += uses_of(config, name, outline) if outline else []
        if outline is not None:
            outlines[name] = outline
            lines += _unread(name, outline)
    for name in config.observed(used):
        _look_at_data(asked, name, config.calibrations[name])
    for name in sorted({table.evaluation for table in used if table.evaluation}):
        lines += _task_problems(asked, name, config)
    return [*lines, *asked.lines(), *_room(config, outlines, downloads, results)]


def _unread(name: str, outline: Outline) -> list[str]:
    """Return a line if transformers would not read a model's config.json."""
    try:
        accepted(outline.config, f"{outline.source}: config.json")
    except ReplaceMeError as error:
        return [f"models.{name}: {error}"]
    return []


def missing_packages() -> Iterator[str]:
    """Yield a line for each required package that is not installed."""
    for requirement in importlib.metadata.requires("replaceme") or []:
        if "extra ==" in requirement:
            continue
        name = REQUIREMENT.match(requirement)[0]
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield f"package {name} is not installed; run `pip install -r requirements.txt`"


def _local_outline(folder: str, dequantise: bool) -> Outline | None:
    try:
        return outline_at(folder, dequantise)
    except ReplaceMeError:
        return None  # `local_problems` says why


def _look_at_data(asked: _Asked, name: str, section: CalibrationConfig) -> None:
    """Look up the data set of a calibration on the Hub, and check that its first records have the named columns."""
    source = section.dataset or section.images
    if source in (None, *MICRO, GENERATED):
        return
    if names_file(source) if section.images is None else names_folder(source):
        return
    where = f"calibrations.{name}"
    if asked(where, source, hub.repository, "dataset", source, section.revision) is None:
        return
    place = (source, section.name, section.revision, section.split)
    records = asked(where, source, hub.first_records, *place)
    if records is not None:
        asked(where, source, _check_records, records, section)


def _check_records(records: list[dict], section: CalibrationConfig) -> None:
    """Raise ReplaceMeError for a missing column, or where no record can be used."""
    make = image_of if section.images is not None else text_of if section.conversations is None else messages_of
    passed = PassedOver(section.source)
    if section.pictures is not None:
        records = list(passed.usable(records, lambda record: pictures_of(record, section) and record))
    if not list(passed.usable(records, lambda record: make(record, section))):
        passed.report(0)


def _task_problems(asked: _Asked, name: str, config: Config) -> list[str]:
    """Return lines for tasks that lm-eval lacks, and for missing needs of others or of images; looks up data sets."""
    section = config.evaluations[name]
    if section.zeroshot:
        return _zeroshot_problems(asked, name, section)
    if section.include is not None and not Path(section.include).is_dir():
        return []  # an error of its own
    where = f"evaluations.{name}"
    with harness.quiet():
        manager = task_index.index(list(section.tasks), section.include)
        unknown = task_index.unknown_tasks(manager, list(section.tasks), section.include)
        known = [task for task in section.tasks if task not in unknown]
        needed = task_index.needs(manager, known)
        for line in seen_texts(config, name, task_trials.measured_on_hub(manager, section, known)):
            log.warning("%s", line)
        faults = list(task_trials.task_faults(manager, section, known))
    for source, revision in needed.datasets:
        asked(where, source, hub.repository, "dataset", source, revision)
    return [f"{where}: {line}" for line in (*unknown.values(), *needed.problems, *faults)]


def _zeroshot_problems(asked: _Asked, name: str, section: EvaluationConfig) -> list[str]:
    """Return lines for faults of labelled images on the Hub, and for a missing clip-benchmark."""
    for key, data in section.zeroshot.items():
        if not names_folder(data.images):
            where = f"evaluations.{name}.zeroshot.{key}"
            found = asked(where, data.images, hub.repository, "dataset", data.images, data.revision)
            if found is not None:
                asked(where, data.images, _check_images, found, data)
    try:
        check_package()
    except ReplaceMeError as error:
        return [f"evaluations.{name}: {error}"]
    return []


def _check_images(found: hub.Repository, data: ZeroShotConfig) -> None:
    """Raise ReplaceMeError where a data set of the Hub lacks the split, or has labels of another kind."""
    if not any(file.startswith(f"{data.split}/") and file.endswith(".tar") for file in found.files):
        raise ReplaceMeError(f"{data.images}: no tar files under {data.split}/; take another split or data set")
    check_kind(data, hub.lines_of(found, TYPE))
    if data.kind != "retrieval" and CLASSES not in found.files and data.prompts is None:
        raise ReplaceMeError(f"{data.images}: no {CLASSES} in it; name `prompts` of clip-benchmark that have the names")


def _room(config: Config, outlines: dict[str, Outline], downloads: dict[str, int], results: Path) -> list[str]:
    import torch
    from huggingface_hub import constants

    jobs_at_once = (os.cpu_count() or 1) + torch.cuda.device_count()
    lines = disk_problems(config, outlines, downloads, results, Path(constants.HF_HUB_CACHE), jobs_at_once)
    try:
        device = pick_device(config.device)
    except ReplaceMeError as error:
        return [*lines, str(error)]
    timed = any(table.speed for table in config.tables.values()) or any(cut.of in TIMED for cut in config.cuts.values())
    if config.speed.clock == KERNELS and device == "cpu" and timed:
        lines.append(f"speed.clock: {KERNELS} are a GPU's, and this machine has none; take `{WALL}`")
    return [*lines, *memory_problems(config, outlines, device_memory(device), device)]


def device_memory(device: str) -> int:
    """Return the bytes of memory of a device, used or not."""
    if device == "cpu":
        import psutil

        return psutil.virtual_memory().total
    import torch

    return torch.cuda.get_device_properties(0).total_memory
