"""What calibration sets of text and of images have in common: batches, a hash, a file, streams from the Hub."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from replaceme.config import CalibrationConfig
from replaceme.errors import ReplaceMeError, first_line
from replaceme.files import save_tensors
from replaceme.text_files import first_fault

if TYPE_CHECKING:
    import torch


class Samples(ABC):
    """Calibration samples in order; `mask` bool [samples, positions] is true where hidden states count."""

    mask: "torch.Tensor"

    @abstractmethod
    def __getitem__(self, part: "slice | torch.Tensor") -> Self:
        """Some of the samples: a slice of them, or those with the given numbers."""

    @abstractmethod
    def join(self, *others: Self) -> Self:
        """These samples and, after them, those of others of the same kind."""

    @abstractmethod
    def tensors(self) -> "dict[str, torch.Tensor]":
        """What is stored and hashed, the shape of the first with it."""

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.tensors().values())))

    @property
    def count(self) -> int:
        """Number of unmasked positions."""
        return int(self.mask.sum())

    def first(self, samples: int | None) -> Self:
        """The first `samples` samples (all of them for None)."""
        return self[:samples]

    def batches(self, batch_size: int, shard: int = 0, shards: int = 1) -> list[Self]:
        """Batches in order; shard k of `shards` gets a contiguous, near-equal part of them."""
        starts = range(0, len(self), batch_size)
        mine = starts[shard * len(starts) // shards : (shard + 1) * len(starts) // shards]
        return [self[k : k + batch_size] for k in mine]

    def digest(self) -> str:
        """SHA-256 of the shape and the tensors."""
        tensors = list(self.tensors().values())
        content = hashlib.sha256(f"{list(tensors[0].shape)}".encode())
        for tensor in tensors:
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None:
        """Write the tensors with their hash and count."""
        save_tensors(path, self.tensors(), {**metadata, "sha256": self.digest(), "unmasked_tokens": self.count})


def stream(config: CalibrationConfig, source: str, buffer: int, **local: Any) -> Iterator[dict]:
    """Records of a Hub dataset, or of a `local` file, shuffled by the seed in a buffer of so many."""
    from datasets import load_dataset

    from replaceme.offline import offline

    try:
        if local:
            with offline():  # it would report even the reading of a local file
                records = load_dataset(**local, split="train", streaming=True)
        else:
            records = load_dataset(source, config.name, revision=config.revision, split=config.split, streaming=True)
        yield from records.shuffle(seed=config.seed, buffer_size=buffer)
    except ReplaceMeError:
        raise
    except Exception as error:  # datasets and the hub raise many types: offline, missing, broken files
        fault = first_fault(source) if source.endswith(".jsonl") and local else None
        if fault:
            raise ReplaceMeError(f"{source}: {fault}") from error
        remedy = "is the file whole?" if local else "check id, name, split and revision, and the network"
        raise ReplaceMeError(f"{source}: cannot read the dataset ({first_line(error)}); {remedy}") from error
