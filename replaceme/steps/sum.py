"""sum: add the statistics of all shards."""

import argparse

from replaceme.errors import ReplaceMeError
from replaceme.statistics import Statistics
from replaceme.steps.common import out_argument

HELP = "Add the statistics of all shards of a cut."
ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("shards", nargs="+", metavar="STATISTICS", help="statistics of every shard, in order")
    out_argument(parser, "where the sum goes (.safetensors)")


def run(args: argparse.Namespace) -> None:
    """Write the sum; raises ReplaceMeError when a shard is missing, twice, or of another cut."""
    loaded = [Statistics.load(path) for path in args.shards]
    shared = [{key: value for key, value in metadata.items() if key != "shard"} for _, metadata in loaded]
    for path, origin in zip(args.shards, shared, strict=True):
        if origin != shared[0]:
            raise ReplaceMeError(
                f"{path}: of another model, calibration, cut or number of shards than {args.shards[0]}"
            )
    numbers = [metadata["shard"] for _, metadata in loaded]
    if sorted(numbers) != list(range(shared[0]["shards"])):
        raise ReplaceMeError(f"sum: shards {sorted(numbers)} given, 0 .. {shared[0]['shards'] - 1} needed, once each")
    in_order = sorted(loaded, key=lambda one: one[1]["shard"])
    Statistics.sum([statistics for statistics, _ in in_order]).save(args.out, shared[0])
