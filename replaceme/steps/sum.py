"""sum: add the statistics of all shards."""

import argparse

from replaceme.activations.statistics import Statistics
from replaceme.steps.common import check_shards, out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("shards", nargs="+", metavar="STATISTICS", help="statistics of every shard, in order")
    out_argument(parser, "where the sum goes (.safetensors)")


def run(args: argparse.Namespace) -> None:
    """Write the sum; raises ReplaceMeError when a shard is missing, twice, or of another cut."""
    in_order, origin = check_shards(args.shards)
    groups = range(len(origin.groups))
    total = [Statistics.sum(Statistics.load(path, group)[0] for path in in_order) for group in groups]
    Statistics.save_all(args.out, total, origin.content)
