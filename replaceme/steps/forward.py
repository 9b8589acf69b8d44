"""Common arguments of the steps with forward passes over calibration tokens, and loading of their inputs."""

import argparse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replaceme.activations.open_model import load_model
from replaceme.calibration.tokens import Tokens, check_vocabulary, load_tokens
from replaceme.config.calibrations import FORWARD, CalibrationConfig
from replaceme.config.command_line import add_options, option_of
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.fitting.passes import Passes
from replaceme.models.checkpoints import read_config
from replaceme.models.family import Family
from replaceme.models.loading import Held
from replaceme.models.model_config import family_of, pick_device, pick_dtype, stored_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, set_threads

if TYPE_CHECKING:
    from torch import nn


def forward_arguments(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add MODEL, TOKENS, the options of a forward pass (and `more` of the calibration's), and where to compute."""
    model_argument(parser)
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step")
    add_options(parser, CalibrationConfig, (*FORWARD, *more))
    compute_arguments(parser)


def held_by(args: argparse.Namespace) -> Held:
    """Return how the options of a forward pass hold the weights."""
    in_4bit, streaming = (option_of(args, CalibrationConfig, name) for name in ("load_in_4bit", "streaming"))
    return Held(gpus_of(args), in_4bit, streaming)


@dataclass(frozen=True)
class Forward:
    """The inputs of a forward pass over calibration tokens; `origin` describes their sources."""

    record: ModelRecord
    tokens: Tokens
    origin: Origin
    model: "nn.Module"
    family: Family
    batch_size: int


def load_forward(args: argparse.Namespace, record: ModelRecord, head: bool = False) -> Forward:
    """Load the inputs named by `forward_arguments`, the model by its record, with its head or without."""
    batch_size = option_of(args, CalibrationConfig, "batch_size")
    tokens, metadata = load_tokens(args.tokens_file)
    set_threads(args.threads)
    config = read_config(record.folder)
    check_vocabulary(tokens, config, args.tokens_file)
    device = pick_device(args.device)
    dtype = pick_dtype(option_of(args, CalibrationConfig, "dtype"), device, config)
    held = held_by(args)
    model = load_model(record.folder, dtype, device, head, held)
    origin = Origin(record.sha256, metadata["sha256"], metadata, held.of_type(dtype), batch_size)
    return Forward(record, tokens, origin, model, family_of(config, record.folder), batch_size)


def load_passes(args: argparse.Namespace, record: ModelRecord, head: bool = False) -> tuple[Passes, Origin]:
    """Return forward passes over the text of --tokens, and their origin."""
    if args.tokens_file is None:
        raise ReplaceMeError("options: forward passes are needed: give --tokens, made by `replaceme tokens`")
    forward = load_forward(args, record, head)
    stored = stored_dtype(read_config(record.folder))
    passes = Passes(forward.model, forward.family, forward.tokens, forward.batch_size, stored, folder=record.folder)
    return (replace(passes, model=forward.model.base_model, headed=forward.model) if head else passes), forward.origin
