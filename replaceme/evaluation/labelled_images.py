"""Read labelled images, with classes or captions, in the layout of clip-benchmark or in a folder for each class.

In a folder, or a data set of the Hub, `classnames.txt`, `zeroshot_classification_templates.txt` and
`dataset_type.txt` (`multilabel`, `retrieval`; none for classes) lie beside the folders of its splits. A split holds
samples in tar files or as plain files (see `labelled_samples`), or a folder of images for each class.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from replaceme.calibration.images import SUFFIXES
from replaceme.config.evaluations import METRICS, ZeroShotConfig
from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.text_files import read_lines
from replaceme.evaluation.labelled_samples import CLASSES, LABELS, TEMPLATES, TYPE, Labelled
from replaceme.models.checkpoints import names_folder

if TYPE_CHECKING:
    pass

PACKAGE = "clip_benchmark"
SHOWN = 8  # names of what lies in a folder, in a message
PLAIN_TEMPLATE = "a photo of a {c}."


def labelled(config: ZeroShotConfig) -> Labelled:
    """Return the labelled images of a section, downloaded if they lie on the Hub; samples are not read yet.

    Raises ReplaceMeError for a missing or empty folder, labels of another kind than the metrics, and prompts that are
    not templates.
    """
    if not names_folder(config.images):
        folder = _downloaded(config)
        return _found(config, folder, folder.name)
    if config.revision is not None:
        raise ReplaceMeError(f"{config.images}: a local folder has no revision; drop it")
    folder = Path(config.images).expanduser()
    if not folder.is_dir():
        raise ReplaceMeError(f"{folder}: no such folder; `images` is a folder or a Hub id")
    return _found(config, folder, None)


def _downloaded(config: ZeroShotConfig) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [CLASSES, TEMPLATES, TYPE, f"{config.split}/*"]
    try:
        return Path(
            snapshot_download(config.images, repo_type="dataset", revision=config.revision, allow_patterns=patterns)
        )
    except Exception as error:  # the hub raises many types: offline, missing, gated, time-out
        raise ReplaceMeError(
            f"{config.images}: neither a local folder nor reachable on the Hub ({in_one_line(error)})"
        ) from error


def _found(config: ZeroShotConfig, folder: Path, commit: str | None) -> Labelled:
    place = _place(config, folder)
    has_samples = any(path.suffix.lower() in {".tar", *SUFFIXES} for path in place.iterdir())
    folders = () if has_samples else _class_folders(config, place)
    check_kind(config, _lines(folder / TYPE))
    if config.kind == "retrieval":
        return Labelled(config.images, config.kind, place, (), (), (), commit)
    classes = _classes(config, folder, folders)
    templates = _templates(config, folder)
    return Labelled(config.images, config.kind, place, folders, classes, templates, commit)


def _place(config: ZeroShotConfig, folder: Path) -> Path:
    """Return the folder of the split, or the whole folder where no split is named and none exists."""
    place = folder / config.split
    if place.is_dir():
        return place
    if config.split != ZeroShotConfig.model_fields["split"].default:
        raise ReplaceMeError(f"{folder}: no split {config.split!r}; it holds {_listed(folder)}; name one, or drop it")
    return folder


def _class_folders(config: ZeroShotConfig, place: Path) -> tuple[Path, ...]:
    """Return the folders of images, each of a class; raises ReplaceMeError where there are none, or where they are
    splits.
    """
    folders = tuple(sorted(path for path in place.iterdir() if path.is_dir() and _has_images(path)))
    if not folders or not all(_is_class(path, config.kind) for path in folders):
        raise ReplaceMeError(
            f"{place}: taken as split {config.split!r}, and has neither tar files, nor images with labels, nor a "
            f"folder of images for each class; it holds {_listed(place)}"
        )
    return folders


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*"))


def _is_class(folder: Path, kind: str) -> bool:
    """Return whether images lie directly in a folder, without the labels or tar files of a split."""
    endings = {path.suffix.lower() for path in folder.iterdir()}
    return bool(endings & SUFFIXES) and not endings & {".tar", f".{LABELS[kind]}"}


def _listed(folder: Path) -> str:
    """List the first few names in a folder."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]) or "nothing"


def check_kind(config: ZeroShotConfig, lines: Sequence[str]) -> None:
    """Raise ReplaceMeError where the lines of dataset_type.txt (none: classes) do not fit the metrics."""
    stored = lines[0].lower() if lines else "classification"
    if stored not in METRICS:
        raise ReplaceMeError(f"{config.images}: {TYPE} says {stored!r}; known: {', '.join(METRICS)}")
    if stored != config.kind:
        raise ReplaceMeError(
            f"{config.images}: its labels are of {stored}, {config.metrics[0]} is of {config.kind}; metrics of "
            f"{stored}: {', '.join(METRICS[stored])}"
        )


def _classes(config: ZeroShotConfig, folder: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of the classes: given ones, else those that the package knows, else those of the folders."""
    found = _lines(folder / CLASSES)
    if not found and config.prompts is not None:
        found = _of_package("en_classnames").get(config.prompts, [])
    found = found or [path.name.replace("_", " ") for path in folders]
    if not found:
        raise ReplaceMeError(f"{folder}: no {CLASSES} in it, with the name of a class in each line")
    if folders and len(found) != len(folders):
        raise ReplaceMeError(f"{folder}: {len(found)} names of classes for {len(folders)} folders; give one for each")
    for metric in config.metrics:
        number = int(metric.removeprefix("acc")) if metric.startswith("acc") else 1
        if number > len(found):
            raise ReplaceMeError(f"{folder}: {metric} of {len(found)} classes; take a smaller number")
    return tuple(found)


def _templates(config: ZeroShotConfig, folder: Path) -> tuple[str, ...]:
    found = _lines(folder / TEMPLATES)
    if config.prompts is not None:
        known = _of_package("en_zeroshot_classification_templates")
        if config.prompts not in known:
            raise ReplaceMeError(f"prompts: clip-benchmark has none of {config.prompts!r}; it has {', '.join(known)}")
        found = known[config.prompts]
    for template in found:
        # the package formats it, so nothing but the class may stand in braces
        if "{c}" not in template or set("{}") & set(template.replace("{c}", "")):
            raise ReplaceMeError(f"{folder}: {template!r} is no prompt; `{{c}}` stands for the class, once or more")
    return tuple(found) or (PLAIN_TEMPLATE,)


def _of_package(name: str) -> dict[str, list[str]]:
    check_package()
    folder = Path(find_spec(PACKAGE).submodule_search_locations[0])
    return json.loads((folder / "datasets" / f"{name}.json").read_text(encoding="utf-8"))


def check_package() -> None:
    """Raise ReplaceMeError where clip-benchmark is not installed."""
    if find_spec(PACKAGE) is None:
        raise ReplaceMeError(
            "zeroshot: needs the package clip-benchmark; `pip install --no-deps clip-benchmark` (of it nothing is used "
            "that needs torchvision)"
        )


def _lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty; none where there is no such file."""
    return read_lines(path) if path.is_file() else []


def files_of(config: ZeroShotConfig) -> list[Path]:
    """Return all files of labelled images that lie in a local folder, sorted; none of those on the Hub."""
    folder = Path(config.images).expanduser()
    if not names_folder(config.images) or not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
