"""candidates: what each possible cut of a given size leaves unexplained after its own fit."""

import argparse

from replaceme.config import CalibrationConfig, CutConfig
from replaceme.cuts import measure_candidates, resolve_blocks
from replaceme.data import load_tokens
from replaceme.files import write_json
from replaceme.options import add_options, from_options
from replaceme.steps.common import (
    calibration_of,
    compute_arguments,
    load_blocks,
    load_model,
    model_argument,
    out_argument,
)
from replaceme.steps.distances import batch_size_of

HELP = "Fit every candidate cut of one size on a token subset and measure what is left (candidates.json)."
ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step")
    out_argument(parser, "where candidates.json goes")
    add_options(parser, CutConfig, ("blocks", "ratio", "samples"))
    add_options(parser, CalibrationConfig, ("batch_size", "dtype"))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the metrics of all candidates."""
    record = load_model(args)
    cut = from_options(args, CutConfig)
    blocks = resolve_blocks(cut, record)
    tokens, metadata = load_tokens(args.tokens_file)
    subset = tokens.first(cut.samples)
    model, family = load_blocks(record, args)
    measured = measure_candidates(model, family, subset, blocks, batch_size_of(args))
    origin = calibration_of(record, metadata)
    write_json(args.out, {"blocks": blocks, "tokens": subset.count, **origin, "candidates": measured})
