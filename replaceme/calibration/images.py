"""Calibration images -> pixel values as an encoder takes them, deterministic in (source, seed).

Sources: a folder (read with its subfolders), Hub datasets with a column of images (streamed), and `generated`, smooth
textures with shapes on them, for where nothing better is at hand. Images are resized, cropped and normalised by
transformers' image processor, as the checkpoint's preprocessor_config.json says.
"""

import io
import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from replaceme.calibration.samples import PassedOver, Samples, column_of, number_of, stream
from replaceme.config.calibrations import GENERATED, OF_HUB, CalibrationConfig
from replaceme.core.errors import ReplaceMeError, UnusableError, in_one_line
from replaceme.core.progress import progress
from replaceme.models.checkpoints import names_folder, read_config
from replaceme.models.model_config import family_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL.Image import Image

log = logging.getLogger(__name__)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SIDE = 256  # of a generated image
SHUFFLE_BUFFER = 1_000  # images held while shuffling a stream
IMAGE_FIELDS = ("images", "name", "revision", "split", "samples", "seed")


@dataclass(frozen=True)
class Images(Samples):
    """Images `pixels` float32 [samples, channels, height, width], of which a model makes `positions` hidden states."""

    pixels: "torch.Tensor"
    positions: int

    def __getitem__(self, part: "slice | torch.Tensor") -> "Images":
        """Select some of the images."""
        return Images(self.pixels[part], self.positions)

    def join(self, *others: "Images") -> "Images":
        """Join other images after these; raises ReplaceMeError for other sizes."""
        import torch

        if len({(part.pixels.shape[1:], part.positions) for part in (self, *others)}) > 1:
            raise ReplaceMeError("images of unequal size cannot be mixed; calibrate each for the same model")
        return Images(torch.cat([part.pixels for part in (self, *others)]), self.positions)

    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return the pixel values."""
        return {"pixel_values": self.pixels}

    @property
    def mask(self) -> "torch.Tensor":
        """Mask that is true everywhere, [samples, positions]."""
        import torch

        return torch.ones(len(self), self.positions, dtype=torch.bool)


def calibrate_images(config: CalibrationConfig, folder: str | Path) -> tuple[Images, dict[str, Any]]:
    """Return the images of a calibration for the checkpoint in a folder, and the record of their origin."""
    import torch

    samples = number_of(config)
    processor, model = image_processor(folder), read_config(folder)
    passed = PassedOver(config.images)
    found = passed.usable(read_images(config, passed), lambda image: pixel_values(processor, image, folder))
    rows = list(progress(itertools.islice(found, samples), "images", samples, "image"))
    passed.report(len(rows))
    if not rows:
        raise ReplaceMeError(f"{config.images}: no images; check folder, split and column")
    if len(rows) < samples:
        log.warning("%s: %d images found, %d asked for", config.images, len(rows), samples)
    if len({row.shape for row in rows}) > 1:
        raise ReplaceMeError(f"{folder}: preprocessor_config.json leaves images of unequal size; crop or resize them")
    pixels = torch.stack(rows)
    positions = positions_of(model, pixels.shape, str(folder))
    record = {**config.model_dump(include=set(IMAGE_FIELDS)), "column": config.source_column, "positions": positions}
    return Images(pixels, positions), record


def positions_of(config: dict[str, Any], shape: tuple[int, ...], where: str) -> int:
    """Return how many hidden states a model makes of an image; raises ReplaceMeError for a size that it does not
    take.
    """
    family = family_of(config, where)
    sizes = family.sizes(config)
    height, width = shape[-2:]
    if not family.any_size and (height, width) != (sizes["image_size"],) * 2:
        raise ReplaceMeError(
            f"{where}: preprocessor_config.json makes images of {height} x {width}, the model takes "
            f"{sizes['image_size']} x {sizes['image_size']}"
        )
    return (height // sizes["patch_size"]) * (width // sizes["patch_size"]) + family.prefix


def check_images(config: CalibrationConfig) -> None:
    """Raise ReplaceMeError when a local folder of images is missing or holds none."""
    if config.images == GENERATED or not names_folder(config.images):
        return
    folder = Path(config.images).expanduser()
    if not folder.is_dir():
        raise ReplaceMeError(f"{folder}: no such folder; `images` is a folder, {GENERATED}, or a Hub id")
    if not image_files(folder):
        raise ReplaceMeError(f"{folder}: no images in it ({', '.join(sorted(SUFFIXES))})")
    fields = type(config).model_fields
    of_hub = [key for key in sorted({*OF_HUB, "column"}) if getattr(config, key) != fields[key].default]
    if of_hub:
        raise ReplaceMeError(f"{folder}: a local folder takes no {', '.join(of_hub)}; drop it")


def image_files(folder: Path) -> list[Path]:
    """Return the images of a folder and its subfolders, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_images(config: CalibrationConfig, passed: PassedOver) -> "Iterator[Image]":
    """Yield the images of a source in RGB, in an order fixed by the seed; files and records that hold none are `passed`
    over.
    """
    check_images(config)
    if config.images == GENERATED:
        return (generated(config.seed, number) for number in itertools.count())
    if names_folder(config.images):
        files = image_files(Path(config.images).expanduser())
        random.Random(config.seed).shuffle(files)
        return passed.usable(files, lambda path: opened(path, str(path)))
    return passed.usable(stream(config, SHUFFLE_BUFFER), lambda record: image_of(record, config))


def opened(file: Path | BinaryIO, where: str) -> "Image":
    """Open the image of a file in RGB, the right way up; raises UnusableError that names any other file."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return upright(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnusableError(f"{where}: not a readable image ({error}); remove or replace it") from error


def image_of(record: dict, config: CalibrationConfig) -> "Image":
    """Return the image of a record in RGB, decoded or as `datasets` stores it; raises UnusableError where it has
    none.
    """
    from PIL.Image import Image

    column = config.source_column
    image = column_of(record, column, config.images)
    if isinstance(image, Image):
        return upright(image)
    stored = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(stored, bytes):
        raise UnusableError(f"{config.images}: no image in column {column!r}; name another one by `column`")
    return opened(io.BytesIO(stored), f"{config.images}: column {column!r}")


def upright(image: "Image") -> "Image":
    """Return an image in RGB, the right way up."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image).convert("RGB")


def image_processor(folder: str | Path) -> Any:
    """Load the image processor that lies beside a checkpoint."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise ReplaceMeError(f"{folder}: no usable preprocessor_config.json ({in_one_line(error)})") from error


def pixel_values(processor: Any, image: "Image", folder: str | Path) -> "torch.Tensor":
    """Return the pixel values [channels, height, width] of an image, float32."""
    try:
        return processor(images=image, return_tensors="pt")["pixel_values"][0].float()
    except (ValueError, TypeError, KeyError) as error:
        raise UnusableError(f"{folder}: its image processor refuses an image ({in_one_line(error)})") from error


def generated(seed: int, number: int) -> "Image":
    """Draw a smooth texture of a few waves over a gradient, with discs and boxes of one colour on it."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng((seed, number))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    picture = draw.uniform(0, 1, 3) + draw.uniform(-1, 1, 3) * x[..., None] + draw.uniform(-1, 1, 3) * y[..., None]
    for _ in range(6):
        across, down = draw.normal(0, 8, 2)
        wave = np.sin(2 * np.pi * (across * x + down * y) + draw.uniform(0, 2 * np.pi))
        picture += draw.uniform(-0.3, 0.3, 3) * wave[..., None]
    for _ in range(draw.integers(1, 6)):
        picture[_shape(draw, x, y)] = draw.uniform(0, 1, 3)
    return Image.fromarray((picture.clip(0, 1) * 255).astype(np.uint8))


def _shape(draw: "np.random.Generator", x: "np.ndarray", y: "np.ndarray") -> "np.ndarray":
    """Return the area of a random disc or box, bool [side, side]."""
    import numpy as np

    (left, top), (wide, high) = draw.uniform(0, 1, 2), draw.uniform(0.05, 0.4, 2)
    across, down = (x - left) / wide, (y - top) / high
    return np.hypot(across, down) < 1 if draw.uniform() < 0.5 else np.maximum(abs(across), abs(down)) < 1
