"""gram: sum the statistics of one cut over one shard of the calibration tokens, for the fits of one placement."""

import argparse
from dataclasses import replace

from replaceme.activations.gather import gather_groups, shard_batches
from replaceme.activations.statistics import Statistics
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.fits import FitConfig
from replaceme.config.placement import REGRESSION
from replaceme.core.cut_record import Cut
from replaceme.steps.common import model_record, neurons, out_argument, same_model
from replaceme.steps.forward import forward_arguments, load_forward

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
    cut = Cut.load(args.cut)
    record = model_record(args)
    same_model(record, cut.model_sha256, args.cut)
    forward = load_forward(args, record)
    shards = option_of(args, CalibrationConfig, "shards")
    batches = shard_batches(forward.tokens, forward.batch_size, args.shard, shards)
    regression = from_options(args, FitConfig, REGRESSION).regression
    if args.before:
        regression = regression.before or regression
    origin = replace(forward.origin, groups=cut.groups)
    recycled = neurons(args.recycled, regression, origin)
    statistics = gather_groups(forward.model, forward.family, batches, cut.groups, regression, recycled)
    origin = replace(origin, kind=regression.kind, shard=args.shard, shards=shards)
    Statistics.save_all(args.out, statistics, origin.content)
