"""gram: sum the statistics of one cut over one shard of the calibration tokens, for the fits of one placement."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from replaceme.activations.gather import Gathered
from replaceme.activations.statistics import Statistics
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.fits import FitConfig
from replaceme.config.placement import REGRESSION
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import model_record, neurons, out_argument, same_model
from replaceme.steps.forward import Forward, forward_arguments
from replaceme.steps.shared_pass import Share, run_pass

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where the statistics go (.safetensors)")
    parser.add_argument("--shard", type=int, default=0, metavar="K", help="shard to compute, from 0. Default: 0.")
    forward_arguments(parser, "shards")
    add_options(parser, FitConfig, REGRESSION)
    parser.add_argument("--recycled", metavar="FILE", help="neurons of the `recycle` step; needed with --recycle")
    parser.add_argument(
        "--before", action="store_true", help="with --recycle: the sums from which the neurons are chosen"
    )
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")


def run(args: argparse.Namespace) -> None:
    """Write the statistics of the shard."""
    _shards(args)
    cut, record = Cut.load(args.cut), model_record(args)
    same_model(record, cut.model_sha256, args.cut)
    run_pass("gram", args, work)


@contextmanager
def work(args: argparse.Namespace, forward: Forward, out: Path) -> Iterator[Share]:
    """Collect the statistics of the shard, and write them to `out` after the pass."""
    cut = Cut.load(args.cut)
    regression = from_options(args, FitConfig, REGRESSION).regression
    if args.before:
        regression = regression.before or regression
    origin = replace(forward.origin, groups=cut.groups)
    gathered = Gathered(cut.groups, regression, neurons(args.recycled, regression, origin))
    yield Share([gathered], gathered.bytes(forward.model, forward.family))
    origin = replace(origin, kind=regression.kind, shard=args.shard, shards=_shards(args))
    Statistics.save_all(out, gathered.statistics(), origin.content)


def _shards(args: argparse.Namespace) -> int:
    """Return the number of shards; raises ReplaceMeError where the one to compute is none of them."""
    shards = option_of(args, CalibrationConfig, "shards")
    if not 0 <= args.shard < shards:
        raise ReplaceMeError(f"options: --shard {args.shard}: must be at least 0, and less than --shards {shards}")
    return shards
