"""Labelled images, of classes or with captions, as clip-benchmark lays them out or in a folder for each class.

In a folder, or a data set of the Hub, `classnames.txt`, `zeroshot_classification_templates.txt` and
`dataset_type.txt` (`multilabel`, `retrieval`; none for classes) lie beside the folders of its splits. A split holds
samples in tar files, or as plain files: `s1.png` with `s1.cls`, the number of its class, `s1.npy`, a 0 or 1 for each
class, or `s1.txt`, a caption in each line. Or it holds a folder of images for each class. In a tar file, as webdataset
has it, the folder belongs to the name of a sample: `0001/image.png` with `0001/image.cls`.
"""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.calibration.images import SUFFIXES, image_files, opened
from replaceme.config.evaluations import METRICS, ZeroShotConfig
from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.text_files import decoded, read_lines
from replaceme.models.checkpoints import is_local

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

PACKAGE = "clip_benchmark"
CLASSES, TEMPLATES, TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
LABELS = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}
BESIDE = {CLASSES, TEMPLATES, TYPE, "nshards.txt"}
ENDINGS = {*SUFFIXES, *(f".{ending}" for ending in LABELS.values())}
SHOWN = 8  # names of what lies in a folder, in a message
PLAIN_TEMPLATE = "a photo of a {c}."


@dataclass(frozen=True)
class Sample:
    """An image as it is stored, with its label: the number of a class, 0 or 1 for each, or captions."""

    name: str
    image: bytes
    label: Any

    def picture(self) -> "Image":
        """The image in RGB."""
        return opened(io.BytesIO(self.image), self.name)


@dataclass(frozen=True)
class Labelled:
    """Labelled images of a kind; `classes` and `templates` are the words of prompts, empty for captions.

    `place` is where the samples lie, `folders` those of the classes where there are such, `commit` that of the Hub.
    """

    source: str
    kind: str
    place: Path
    folders: tuple[Path, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    commit: str | None

    def samples(self) -> Iterator[Sample]:
        """All samples in a fixed order, which in folders of classes takes an image of each in turn."""
        if self.folders:
            yield from self._of_folders()
            return
        for path, members in self._members():
            for key, files in itertools.groupby(members, key=lambda member: _key_and_ending(member[0])[0]):
                yield self._sample(f"{path}: {key}", _by_ending(f"{path}: {key}", files))

    def _of_folders(self) -> Iterator[Sample]:
        columns = [[(path, number) for path in image_files(folder)] for number, folder in enumerate(self.folders)]
        for row in itertools.zip_longest(*columns):
            yield from (Sample(str(path), path.read_bytes(), number) for path, number in filter(None, row))

    def _members(self) -> Iterator[tuple[Path, Iterator[tuple[str, bytes]]]]:
        """Names and contents of the files of a sample after those of another, for each tar file."""
        for path in tars_of(self.place):
            yield path, _unpacked(path)
        files = sorted(path for path in self.place.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
        yield self.place, ((path.name, path.read_bytes()) for path in files if path.name not in BESIDE)

    def _sample(self, where: str, parts: dict[str, bytes]) -> Sample:
        images = [parts[ending] for ending in parts if f".{ending}" in SUFFIXES]
        ending = LABELS[self.kind]
        if len(images) != 1 or ending not in parts:
            raise ReplaceMeError(
                f"{where}: a sample of this kind ({self.kind}) is an image and a .{ending}; this one has "
                f"{', '.join(sorted(parts)) or 'no endings'}"
            )
        return Sample(where, images[0], self._label(where, parts[ending]))

    def _label(self, where: str, data: bytes) -> Any:
        read = {"classification": self._class, "multilabel": self._several, "retrieval": _captions}[self.kind]
        try:
            return read(data)
        except ValueError as error:
            raise ReplaceMeError(f"{where}: label not readable ({error})") from error

    def _class(self, data: bytes) -> int:
        number = int(data)
        if not 0 <= number < len(self.classes):
            raise ValueError(f"class {number} of {len(self.classes)}")
        return number

    def _several(self, data: bytes) -> "np.ndarray":
        import numpy as np

        values = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        if values.shape != (len(self.classes),) or not np.isin(values, (0, 1)).all():
            raise ValueError(f"not a 0 or 1 for each of {len(self.classes)} classes")
        return values.astype(np.int64)


def _key_and_ending(name: str) -> tuple[str, str]:
    """What names a sample, folders and all up to the first dot behind them, and what follows it."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return folder + slash + stem, ending.lower()


def _by_ending(where: str, files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    for name, data in files:
        ending = _key_and_ending(name)[1]
        if ending in parts:
            raise ReplaceMeError(f"{where}: two files .{ending} of one sample; give every sample a name of its own")
        parts[ending] = data
    return parts


def _captions(data: bytes) -> list[str]:
    captions = [line.strip() for line in decoded(data).splitlines() if line.strip()]
    if not captions:
        raise ValueError("no caption")
    return captions


def _unpacked(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a tar by their name, read one by one and never written."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isfile():
                    yield member.name.removeprefix("./"), archive.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ReplaceMeError(
            f"{path}: not a readable tar file ({in_one_line(error)}); make or download it again"
        ) from error


def tars_of(place: Path) -> list[Path]:
    """The tar files of a split in the order of their numbers."""
    return sorted(place.glob("*.tar"), key=lambda path: (len(path.name), path.name))


def labelled(config: ZeroShotConfig) -> Labelled:
    """The labelled images of a section, downloaded where they lie on the Hub; their samples are not read yet.

    Raises ReplaceMeError for a missing or empty folder, labels of another kind than the metrics, and prompts that are
    not templates.
    """
    if not is_local(config.images):
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
    """The folder of the split, or the whole one where no split was named and there is none."""
    place = folder / config.split
    if place.is_dir():
        return place
    if config.split != ZeroShotConfig.model_fields["split"].default:
        raise ReplaceMeError(f"{folder}: no split {config.split!r}; it holds {_listed(folder)}; name one, or drop it")
    return folder


def _class_folders(config: ZeroShotConfig, place: Path) -> tuple[Path, ...]:
    """The folders of images, each of a class; raises ReplaceMeError where there are none, or where they are splits."""
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
    """Whether images lie directly in a folder, and neither labels nor tar files, as they would in one of a split."""
    endings = {path.suffix.lower() for path in folder.iterdir()}
    return bool(endings & SUFFIXES) and not endings & {".tar", f".{LABELS[kind]}"}


def _listed(folder: Path) -> str:
    """What a folder holds, its first few names."""
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])]) or "nothing"


def check_kind(config: ZeroShotConfig, lines: Sequence[str]) -> None:
    """Raise ReplaceMeError where the lines of dataset_type.txt (none: classes) do not go with the metrics."""
    stored = lines[0].lower() if lines else "classification"
    if stored not in METRICS:
        raise ReplaceMeError(f"{config.images}: {TYPE} says {stored!r}; known: {', '.join(METRICS)}")
    if stored != config.kind:
        raise ReplaceMeError(
            f"{config.images}: its labels are of {stored}, {config.metrics[0]} is of {config.kind}; metrics of "
            f"{stored}: {', '.join(METRICS[stored])}"
        )


def _classes(config: ZeroShotConfig, folder: Path, folders: Sequence[Path]) -> tuple[str, ...]:
    """The names of the classes: given ones, else those that the package knows, else those of the folders."""
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
    """The lines of a text file that are not empty; none where there is no such file."""
    return read_lines(path) if path.is_file() else []


def files_of(config: ZeroShotConfig) -> list[Path]:
    """All files of labelled images that lie in a local folder, sorted; none of those on the Hub."""
    folder = Path(config.images).expanduser()
    if not is_local(config.images) or not folder.is_dir():
        return []
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
