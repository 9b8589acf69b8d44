"""mix: mix one calibration from others, from their token files."""

import argparse
import logging

from replaceme.calibration.mix import mix
from replaceme.calibration.tokens import load_tokens
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import add_options, from_options
from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False
OPTIONS = ("samples", "seed")
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("parts", nargs="+", metavar="TOKENS", help="token files of one model, of the `tokens` step")
    parser.add_argument(
        "--weights", nargs="+", type=float, required=True, metavar="W", help="weight of each file, in the same order"
    )
    add_options(parser, CalibrationConfig, OPTIONS)
    out_argument(parser, "where the mixed tokens go (.safetensors)")


def run(args: argparse.Namespace) -> None:
    """Write the token file."""
    if len(args.weights) != len(args.parts):
        raise ReplaceMeError(f"options: {len(args.weights)} weights for {len(args.parts)} files; give one for each")
    args.mix = {f"part-{k}": weight for k, weight in enumerate(args.weights, 1)}
    config = from_options(args, CalibrationConfig, ("mix", *OPTIONS))
    loaded = [load_tokens(path) for path in args.parts]
    mixed, counts = mix([part for part, _ in loaded], args.weights, config.samples, config.seed)
    record = [
        {"weight": weight, "taken": count, **metadata}
        for weight, count, (_, metadata) in zip(args.weights, counts, loaded, strict=True)
    ]
    mixed.save(args.out, {"mix": record, "samples": config.samples, "seed": config.seed})
    log.info("%d samples (%s), %d tokens", len(mixed), " + ".join(map(str, counts)), mixed.count)
