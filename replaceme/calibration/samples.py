"""The common part of calibration texts and images: batches, a hash, a file, streams, unusable records."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.errors import ReplaceMeError, UnusableError, in_one_line, printable
from replaceme.core.files import save_tensors
from replaceme.core.offline import offline

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)
Item, Made = TypeVar("Item"), TypeVar("Made")


class Samples(ABC):
    """Calibration samples in order; `mask` bool [samples, positions] is true where hidden states count."""

    mask: "torch.Tensor"

    @abstractmethod
    def __getitem__(self, part: "slice | torch.Tensor") -> Self:
        """Select some of the samples: a slice of them, or those with the given numbers."""

    @abstractmethod
    def join(self, *others: Self) -> Self:
        """Join other samples of the same kind after these."""

    @abstractmethod
    def tensors(self) -> "dict[str, torch.Tensor]":
        """Return the tensors that are stored and hashed, the first of which gives the shape."""

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.tensors().values())))

    @property
    def count(self) -> int:
        """Number of unmasked positions."""
        return int(self.mask.sum())

    def first(self, samples: int | None) -> Self:
        """Return the first `samples` samples (all of them for None)."""
        return self[:samples]

    def batches(self, batch_size: int, shard: int = 0, shards: int = 1) -> list[Self]:
        """Return the batches in order; shard k of `shards` gets a contiguous, near-equal part of them."""
        starts = range(0, len(self), batch_size)
        mine = starts[shard * len(starts) // shards : (shard + 1) * len(starts) // shards]
        return [self[k : k + batch_size] for k in mine]

    def digest(self) -> str:
        """Return the SHA-256 of the shape and the tensors."""
        tensors = list(self.tensors().values())
        content = hashlib.sha256(f"{list(tensors[0].shape)}".encode())
        for tensor in tensors:
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None:
        """Write the tensors with their hash and count."""
        save_tensors(path, self.tensors(), {**metadata, "sha256": self.digest(), "unmasked_tokens": self.count})


def number_of(config: CalibrationConfig) -> int:
    """Return the number of samples of a section; raises ReplaceMeError for `auto`, which takes a model to find."""
    if config.automatic:
        raise ReplaceMeError(
            f"{config.source}: samples auto is found by `prune` or the workflow; give a number, of which `replaceme "
            "enough` keeps as many as are enough"
        )
    return config.samples


class PassedOver:
    """Records of a source that were skipped because they are unusable: their number, and the reason of the first."""

    def __init__(self, source: str) -> None:
        """Start with no skipped record."""
        self.source, self.count = source, 0
        self._first: UnusableError | None = None

    def usable(self, items: Iterable[Item], make: Callable[[Item], Made]) -> Iterator[Made]:
        """Yield the result of `make` for each item, except for items where it raises UnusableError."""
        for item in items:
            try:
                made = make(item)
            except UnusableError as error:
                self.count += 1
                self._first = self._first or error
                continue
            yield made

    def report(self, found: int) -> None:
        """Warn of the skipped records; where no record was usable, raise the error of the first."""
        if self._first is None:
            return
        if not found:
            raise self._first
        reason = str(self._first).removeprefix(f"{self.source}: ")
        log.warning("%s: passed over %d of its records, the first: %s", self.source, self.count, reason)


def stream(config: CalibrationConfig, buffer: int) -> Iterator[dict]:
    """Yield the records of a Hub data set, with only the columns in use, shuffled by the seed in a buffer of this size.

    Images are given as they are stored. Raises ReplaceMeError where the dataset lacks a column or cannot be read.
    """
    from datasets import Image, load_dataset

    source, columns = config.source, config.columns
    try:
        records = load_dataset(source, config.name, revision=config.revision, split=config.split, streaming=True)
        if records.features is not None:
            check_names(source, records.features, columns)
            images = [column for column in columns if isinstance(records.features[column], Image)]
            records = records.select_columns(list(columns))
            for column in images:
                records = records.cast_column(column, Image(decode=False))
        yield from records.shuffle(seed=config.seed, buffer_size=buffer)
    except ReplaceMeError:
        raise
    except Exception as error:  # datasets and the hub raise many types: offline, missing, broken files
        raise ReplaceMeError(
            f"{source}: cannot read the dataset ({in_one_line(error)}); check id, name, split and revision, and the "
            "network"
        ) from error


def shuffled(read: Callable[..., Iterator[dict]], given: dict[str, Any], seed: int, buffer: int) -> Iterator[dict]:
    """Yield the records of `read(**given)` in the order in which `stream` would yield them."""
    from datasets import IterableDataset

    with offline():  # datasets would report even the reading of a local file
        records = IterableDataset.from_generator(read, gen_kwargs=given)
    return iter(records.shuffle(seed=seed, buffer_size=buffer))


def check_names(source: str, names: Iterable[str], columns: Iterable[str]) -> None:
    """Raise ReplaceMeError where one of `columns` is not among the names of a source's columns."""
    for column in columns:
        if column not in names:
            raise ReplaceMeError(f"{source}: no column {column!r}; its columns: {', '.join(map(printable, names))}")


def column_of(record: dict, column: str, dataset: str) -> Any:
    """Return a value of a record; raises ReplaceMeError that lists the record's columns where it lacks this one."""
    check_names(dataset, record, [column])
    return record[column]
