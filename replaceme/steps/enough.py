"""enough: find how much of a calibration is enough for a fit, and keep that."""

import argparse
import logging
from pathlib import Path

from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.fits import FitConfig
from replaceme.core.files import write_json
from replaceme.fitting.enough import Criterion, find_enough
from replaceme.steps.common import model_record, out_argument
from replaceme.steps.forward import forward_arguments, load_forward

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where the first of the tokens, as many as are enough, go (.safetensors)")
    parser.add_argument(
        "--report", required=True, type=Path, metavar="PATH", help="where the residuals over the number go (.json)"
    )
    forward_arguments(parser, "tolerance")
    add_options(parser, FitConfig, ("placement",))


def run(args: argparse.Namespace) -> None:
    """Write the token file and the report."""
    tolerance = option_of(args, CalibrationConfig, "tolerance")
    regression = from_options(args, FitConfig, ("placement",)).regression
    forward = load_forward(args, model_record(args))
    samples, found = find_enough(
        forward.model, forward.family, forward.tokens, forward.batch_size, Criterion(tolerance, regression)
    )
    write_json(args.report, found.record())
    samples.save(args.out, {**forward.origin.calibration, "samples": len(samples)})
    log.info(
        "%d of %d samples, %d tokens, sha256 %s",
        len(samples),
        len(forward.tokens),
        samples.count,
        samples.digest()[:12],
    )
