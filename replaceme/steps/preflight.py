"""preflight: find everything that is known to fail before anything is computed."""

import argparse
import json
import logging
import sys

from replaceme.config.schema import load, parse
from replaceme.core.errors import ReplaceMeError
from replaceme.planning.check_online import problems
from replaceme.surgery.leftovers import left_out_of_models

ONLINE = True
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument(
        "config", nargs="?", default="config.yaml", help="config file, or - for JSON on stdin. Default: config.yaml."
    )


def run(args: argparse.Namespace) -> None:
    """Print that all is well, or fail with a line for each problem."""
    config = parse(json.load(sys.stdin), "config") if args.config == "-" else load(args.config)
    found = problems(config)
    if found:
        raise ReplaceMeError("\n".join(found))
    for line in left_out_of_models(config):
        log.warning("%s: %s", args.config, line)
    print(f"preflight: fine ({len(config.models)} models, {len(config.tables)} tables)")
