"""The common part of the comparisons of a model's fits, solvers and metrics: arguments, the model and the texts."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from replaceme.activations.open_model import load_model
from replaceme.calibration.tokens import Tokens, calibrate, load_tokens
from replaceme.config.calibrations import CalibrationConfig
from replaceme.models.checkpoints import read_config, resolve
from replaceme.models.family import Family
from replaceme.models.loading import load_tokenizer
from replaceme.models.model_config import family_of, pick_device, pick_dtype
from replaceme.models.model_record import ModelRecord

BATCH_SIZE = CalibrationConfig.model_fields["batch_size"].default


def parser_of(description: str, samples: int, required: bool = True) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every comparison: the model, its calibration text and the type to compute
    in.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=required, help="folder of a checkpoint")
    parser.add_argument("--name", help="its name in the table (default: the folder's)")
    text = "calibration text: a file of text or of the `tokens` step, or micro"
    parser.add_argument("--text", required=required, help=text)
    parser.add_argument("--samples", type=int, default=samples, help=f"sequences to fit on (default: {samples})")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence (default: 256)")
    parser.add_argument("--dtype", default="auto", help="of the forward passes (default: as in the config)")
    return parser


def add_unseen(parser: argparse.ArgumentParser, samples: int, required: bool = True) -> None:
    """Add the options for texts on which the loss is measured."""
    shape = {"nargs": "+", "metavar": "NAME=FILE", "default": [], "required": required}
    parser.add_argument("--unseen", **shape, help="texts that the loss is measured on")
    parser.add_argument("--unseen-samples", type=int, default=samples, help=f"sequences of each (default: {samples})")


@dataclass(frozen=True)
class Loaded:
    """A model for comparisons, by the arguments of `parser_of`."""

    arguments: argparse.Namespace
    head: bool

    @cached_property
    def name(self) -> str:
        """Name of the model in a table."""
        return self.arguments.name or Path(self.arguments.model).name

    @cached_property
    def record(self) -> ModelRecord:
        """Record of the model, as the `model` step writes it."""
        return resolve(self.arguments.model, None)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Content of its config.json."""
        return read_config(self.record.folder)

    @cached_property
    def device(self) -> str:
        """Device of all computations."""
        return pick_device("auto")

    @cached_property
    def model(self) -> Any:
        """Model itself, with its head if needed."""
        dtype = pick_dtype(self.arguments.dtype, self.device, self.config)
        return load_model(self.record.folder, dtype, self.device, self.head)

    @cached_property
    def family(self) -> Family:
        """Family of the model."""
        return family_of(self.config, self.arguments.model)

    def text(self, dataset: str, samples: int, seed: int = 0) -> Tokens:
        """Return sequences of a text: the first ones of a token file, else drawn by the seed."""
        if dataset.endswith(".safetensors"):
            return load_tokens(dataset)[0].first(samples)
        section = CalibrationConfig(dataset=dataset, samples=samples, tokens=self.arguments.tokens, seed=seed)
        return calibrate(section, load_tokenizer(self.record.folder))[0]

    def unseen(self) -> dict[str, Tokens]:
        """Return the texts of `add_unseen`, by name, drawn by another seed than the calibration text."""
        named = dict(given.split("=", 1) for given in self.arguments.unseen)
        return {name: self.text(dataset, self.arguments.unseen_samples, 1) for name, dataset in named.items()}
