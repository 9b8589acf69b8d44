"""distances: measure how far the blocks' hidden states are from one another."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replaceme.config.metrics import REPRESENTATIONS
from replaceme.cuts.distances import Distances, save
from replaceme.steps.common import out_argument
from replaceme.steps.forward import Forward, forward_arguments
from replaceme.steps.shared_pass import Share, run_pass

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where the matrices go (.safetensors; the .csv lies beside it)")
    words = f"the metrics {' and '.join(REPRESENTATIONS)}"
    parser.add_argument("--representations", action="store_true", help=f"also for {words}; costs more")
    forward_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    run_pass("distances", args, work)


@contextmanager
def work(args: argparse.Namespace, forward: Forward, out: Path) -> Iterator[Share]:
    """Add up the distances, and write both files after the pass."""
    distances = Distances(len(forward.family.block_modules(forward.model)), args.representations)
    yield Share([distances])
    save(out, distances.means(), forward.origin.content)
