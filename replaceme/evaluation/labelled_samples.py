"""Read the samples of labelled images: an image with its label, from tar files, plain files or a folder for each class.

As plain files: `s1.png` with `s1.cls`, the number of its class, `s1.npy`, a 0 or 1 for each class, or `s1.txt`, a
caption in each line. In a tar file, as webdataset has it, the folder belongs to the name of a sample: `0001/image.png`
with `0001/image.cls`.
"""

import io
import itertools
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaceme.calibration.images import SUFFIXES, image_files, opened
from replaceme.core.errors import ReplaceMeError, in_one_line
from replaceme.core.text_files import decoded

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

CLASSES, TEMPLATES, TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
LABELS = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}
BESIDE = {CLASSES, TEMPLATES, TYPE, "nshards.txt"}
ENDINGS = {*SUFFIXES, *(f".{ending}" for ending in LABELS.values())}


@dataclass(frozen=True)
class Sample:
    """A stored image with its label: the number of a class, 0 or 1 for each class, or captions."""

    name: str
    image: bytes
    label: Any

    def picture(self) -> "Image":
        """Decode the image in RGB."""
        return opened(io.BytesIO(self.image), self.name)


@dataclass(frozen=True)
class Labelled:
    """Labelled images of a kind; `classes` and `templates` are the words of prompts, empty for captions.

    `place` is the folder of the samples, `folders` those of the classes if any, `commit` the revision on the Hub.
    """

    source: str
    kind: str
    place: Path
    folders: tuple[Path, ...]
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    commit: str | None

    def samples(self) -> Iterator[Sample]:
        """Yield all samples in a fixed order, which in folders of classes takes an image of each in turn."""
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
        """Yield, tar file by tar file, the names and contents of the files, sample by sample."""
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
    """Split a name into the sample's key (folders and all up to the first dot) and the ending."""
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
    """Yield the files of a tar by their name, read one by one and never written."""
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
    """Return the tar files of a split in the order of their numbers."""
    return sorted(place.glob("*.tar"), key=lambda path: (len(path.name), path.name))
