"""sum: add the statistics of all shards."""

import argparse
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from replaceme.activations.statistics import Statistics
from replaceme.steps.common import check_shards, out_argument

ONLINE = False
AHEAD = 2  # shards that are read, and their digests compared, while another is added


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("shards", nargs="+", metavar="STATISTICS", help="statistics of every shard, in order")
    out_argument(parser, "where the sum goes (.safetensors)")


def run(args: argparse.Namespace) -> None:
    """Write the sum; raises ReplaceMeError when a shard is missing, twice, or of another cut."""
    in_order, origin = check_shards(args.shards)
    groups = range(len(origin.groups))
    total = [Statistics.sum(_read(in_order, group)) for group in groups]
    Statistics.save_all(args.out, total, origin.content)


def _read(paths: Sequence[str | Path], group: int) -> Iterator[Statistics]:
    """Yield the statistics of a group of the cut from each file, in their order."""
    with ThreadPoolExecutor(AHEAD) as readers:
        ahead = deque()
        for path in paths:
            ahead.append(readers.submit(Statistics.load, path, group))
            if len(ahead) > AHEAD:
                yield ahead.popleft().result()[0]
        while ahead:
            yield ahead.popleft().result()[0]
