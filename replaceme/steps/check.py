"""check: validate a config file, or write the documentation of its keys."""

import argparse
import logging
from pathlib import Path

from replaceme.config.docs import render
from replaceme.config.schema import load
from replaceme.core.files import write_text
from replaceme.evaluation.overlap import all_seen_texts
from replaceme.planning.check_local import check_inputs
from replaceme.surgery.leftovers import left_out_of_models
from replaceme.workflow.passes import passes, tables_asked_for

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("config", nargs="?", default="config.yaml", help="config file. Default: config.yaml.")
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="TARGET",
        help="tables, figures or targets of which the forward passes are counted. Default: those of `default`",
    )
    parser.add_argument("--docs", type=Path, metavar="PATH", help="write the documentation of all keys there instead")


def run(args: argparse.Namespace) -> None:
    """Check the config, or document its keys."""
    if args.docs is not None:
        write_text(args.docs, render())
        return
    config = load(args.config)
    check_inputs(config, args.config)
    for line in [*left_out_of_models(config), *all_seen_texts(config)]:
        log.warning("%s: %s", args.config, line)
    print(f"{args.config}: fine ({len(config.models)} models, {len(config.tables)} tables)")
    for line in passes(config, tables_asked_for(config, args.targets)):
        print(line)
