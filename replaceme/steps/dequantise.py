"""dequantise: write the plain weights of a quantised model."""

import argparse

from replaceme.steps.common import new_folder, out_argument
from replaceme.surgery.plain_copy import dequantise

ONLINE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("source", metavar="SOURCE", help="quantised checkpoint: a folder or Hub id, or a GGUF file")
    parser.add_argument("--revision", help="Hub commit, tag or branch")
    out_argument(parser, "folder of the plain checkpoint", new_folder)


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint."""
    dequantise(args.source, args.revision, args.out)
