"""The records of a run, as arguments of the steps that show where its numbers come from."""

import argparse
from pathlib import Path

from replaceme.reports.sources import Records


def record_arguments(parser: argparse.ArgumentParser) -> None:
    """The records of a run that its numbers come from: --models, --calibrations, --measured."""
    group = parser.add_argument_group("records of the run")
    for name, what in (
        ("models", "model.json of each model"),
        ("calibrations", "tokens.safetensors of each calibration"),
        ("measured", "evaluations and speeds (.json)"),
    ):
        group.add_argument(f"--{name}", nargs="*", default=[], type=Path, metavar="FILE", help=what)


def records_of(args: argparse.Namespace) -> Records:
    """What `record_arguments` were given."""
    return Records(args.models, args.calibrations, sorted(set(args.measured)))
