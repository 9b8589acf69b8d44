"""distances: how far the blocks' hidden states are from one another."""

import argparse

from replaceme.config import CalibrationConfig
from replaceme.data import load_tokens
from replaceme.distances import measure, save
from replaceme.options import add_options
from replaceme.steps.common import (
    calibration_of,
    compute_arguments,
    load_blocks,
    load_model,
    model_argument,
    out_argument,
)

HELP = "Measure cosine and angular distances of all pairs of blocks (.safetensors and .csv)."
ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step")
    out_argument(parser, "where the matrices go (.safetensors; the .csv lies beside it)")
    add_options(parser, CalibrationConfig, ("batch_size", "dtype"))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    record = load_model(args)
    tokens, metadata = load_tokens(args.tokens_file)
    model, family = load_blocks(record, args)
    matrices = measure(model, family, tokens, batch_size_of(args))
    save(args.out, matrices, calibration_of(record, metadata))


def batch_size_of(args: argparse.Namespace) -> int:
    """--batch-size, or the schema's default."""
    return getattr(args, "batch_size", CalibrationConfig.model_fields["batch_size"].default)
