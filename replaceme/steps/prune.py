"""prune: run all steps from a model and text to a shorter checkpoint, in one process."""

import argparse
import json

from replaceme.api import prune
from replaceme.calibration.tokens import TOKEN_FIELDS
from replaceme.config.calibrations import ENOUGH, FORWARD, CalibrationConfig, ModelConfig
from replaceme.config.command_line import add_options, any_given, from_options, option_of
from replaceme.config.cuts import MERGING, CutConfig
from replaceme.config.fits import METHODS
from replaceme.reports.summary import Summary
from replaceme.steps.common import (
    compute_arguments,
    costs_argument,
    gpus_of,
    new_folder,
    out_argument,
    set_threads,
    verify_argument,
)

ONLINE = True
# the one `--revision` is the model's
CALIBRATION = (*(name for name in TOKEN_FIELDS if name != "revision"), *ENOUGH, *FORWARD)
CUT = (
    "blocks", "ratio", "of", "groups", "adjacency", "search", "keep_first", "keep_last", *MERGING, "halves", "start",
    "metric", "position",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="folder of a safetensors checkpoint, or a Hub id; with --dequantise a GGUF file",
    )
    parser.add_argument("--revision", help="Hub commit, tag or branch")
    add_options(parser, ModelConfig, ("dequantise",), parser)
    out_argument(parser, "folder of the new checkpoint", new_folder)
    add_options(parser, CalibrationConfig, CALIBRATION)
    add_options(parser, CutConfig, CUT)
    costs_argument(parser)
    add_options(parser, METHODS)
    compute_arguments(parser)
    verify_argument(parser, "the original, as `replaceme verify`")
    parser.add_argument("--json", action="store_true", help="Print the record as JSON, in place of the summary.")


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint and print a summary."""
    set_threads(args.threads)
    calibration = from_options(args, CalibrationConfig, CALIBRATION)
    cut = from_options(args, CutConfig, CUT)  # its `samples` is not the calibration's
    fit = from_options(args, METHODS) if any_given(args, METHODS) else None
    where = {"out": args.out, "revision": args.revision, "device": args.device, "gpus": gpus_of(args)}
    where["costs"] = args.costs
    where["dequantise"] = option_of(args, ModelConfig, "dequantise")
    record = prune(args.source, calibration, cut=cut, fit=fit, verify=args.verify, **where)
    print(json.dumps(record, indent=2) if args.json else Summary(**record["summary"]).text())
