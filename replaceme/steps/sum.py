"""sum: add the statistics of all shards."""

import argparse

from replaceme.errors import ReplaceMeError
from replaceme.files import load_metadata
from replaceme.statistics import Statistics
from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("shards", nargs="+", metavar="STATISTICS", help="statistics of every shard, in order")
    out_argument(parser, "where the sum goes (.safetensors)")


def run(args: argparse.Namespace) -> None:
    """Write the sum; raises ReplaceMeError when a shard is missing, twice, or of another cut."""
    stamps = {path: load_metadata(path) for path in args.shards}
    shared = {path: {key: value for key, value in one.items() if key != "shard"} for path, one in stamps.items()}
    first = shared[args.shards[0]]
    for path, origin in shared.items():
        if origin != first or "shard" not in stamps[path]:
            raise ReplaceMeError(
                f"{path}: of another model, calibration, cut or number of shards than {args.shards[0]}"
            )
    numbers = sorted(stamps[path]["shard"] for path in args.shards)
    if numbers != list(range(first["shards"])):
        raise ReplaceMeError(f"sum: shards {numbers} given, 0 .. {first['shards'] - 1} needed, once each")
    in_order = sorted(stamps, key=lambda path: stamps[path]["shard"])
    Statistics.sum(Statistics.load(path)[0] for path in in_order).save(args.out, first)
