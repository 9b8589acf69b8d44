"""Arguments for the records of a run, in steps that show the sources of its numbers."""

import argparse
from pathlib import Path

from replaceme.reports.sources import Records


def record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the records of a run that its numbers come from: --models, --calibrations, --measured."""
    group = parser.add_argument_group("records of the run")
    for name, what in (
        ("models", "model.json of each model"),
        ("calibrations", "tokens.safetensors of each calibration"),
        ("measured", "evaluations, divergences and speeds (.json)"),
    ):
        group.add_argument(f"--{name}", nargs="*", default=[], type=Path, metavar="FILE", help=what)


def records_of(args: argparse.Namespace) -> Records:
    """Return the records given to `record_arguments`."""
    return Records(args.models, args.calibrations, sorted(set(args.measured)))
