"""merge: write the shortened checkpoint."""

import argparse

from replaceme.fold import write_pruned
from replaceme.methods import write_found
from replaceme.methods.found import Found
from replaceme.steps.common import fitted_arguments, load_fitted, out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    fitted_arguments(parser)
    out_argument(parser, "folder of the new checkpoint")


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint."""
    record, cut, found, origin = load_fitted(args)
    write = write_found if isinstance(found, Found) else write_pruned
    write(record, cut, found, args.out, origin)
