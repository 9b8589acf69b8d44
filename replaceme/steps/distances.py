"""distances: measure how far the blocks' hidden states are from one another."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme.config.metrics import REPRESENTATIONS
from replaceme.cuts.distances import means_of, save, several
from replaceme.steps.common import out_argument
from replaceme.steps.forward import Forward, forward_arguments
from replaceme.steps.shared_pass import Share, run_pass

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where the matrices go (.safetensors; the .csv lies beside it)")
    words = f"the metrics {' and '.join(REPRESENTATIONS)}"
    parser.add_argument("--representations", action="store_true", help=f"also for {words}; costs more")
    parser.add_argument("--halves", action="store_true", help="also in the middle of blocks that have one")
    forward_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    run_pass("distances", args, work)


@contextmanager
def work(args: argparse.Namespace, forward: Forward, out: Path) -> Iterator[Share]:
    """Add up the distances, and write both files after the pass."""
    halves = args.halves and forward.family.attention is not None
    distances = several(len(forward.family.block_modules(forward.model)), args.representations, halves)
    yield Share(distances)
    save(out, means_of(distances), forward.origin.content)
