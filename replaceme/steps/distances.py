"""distances: measure how far the blocks' hidden states are from one another."""

import argparse

from replaceme.config.metrics import REPRESENTATIONS
from replaceme.cuts.distances import measure, save
from replaceme.steps.common import model_record, out_argument
from replaceme.steps.forward import forward_arguments, load_forward

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where the matrices go (.safetensors; the .csv lies beside it)")
    words = f"the metrics {' and '.join(REPRESENTATIONS)}"
    parser.add_argument("--representations", action="store_true", help=f"also for {words}; costs more")
    forward_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write both files."""
    forward = load_forward(args, model_record(args))
    matrices = measure(forward.model, forward.family, forward.tokens, forward.batch_size, args.representations)
    save(args.out, matrices, forward.origin.content)
