"""model: find a model, check it, and record it."""

import argparse

from replaceme.models.checkpoints import resolve
from replaceme.steps.common import out_argument

ONLINE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("source", metavar="SOURCE", help="folder of a safetensors checkpoint, or a Hub id")
    parser.add_argument("--revision", help="Hub commit, tag or branch")
    out_argument(parser, "where model.json goes")


def run(args: argparse.Namespace) -> None:
    """Write model.json."""
    resolve(args.source, args.revision).save(args.out)
