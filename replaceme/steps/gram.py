"""gram: statistics of one cut over one shard of the calibration tokens."""

import argparse

from replaceme.checkpoints import read_config
from replaceme.gather import gather_cut
from replaceme.models import require_foldable
from replaceme.steps.common import load_cut, load_model, out_argument, same_model
from replaceme.steps.forward import forward_arguments, load_forward

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    out_argument(parser, "where the statistics go (.safetensors)")
    parser.add_argument("--shard", type=int, default=0, metavar="K", help="shard to compute, from 0. Default: 0.")
    forward_arguments(parser, "shards")
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")


def run(args: argparse.Namespace) -> None:
    """Write the statistics of the shard."""
    cut = load_cut(args.cut)
    record = load_model(args)
    same_model(record, cut, args.cut)
    require_foldable(read_config(record["folder"]), record["source"])  # before the forward passes, not after
    forward = load_forward(args, record)
    start, end, shards = cut["start"], cut["end"], getattr(args, "shards", 1)
    statistics = gather_cut(
        forward.model, forward.family, forward.tokens, (start, end), forward.batch_size, args.shard, shards
    )
    statistics.save(args.out, {**forward.origin, "start": start, "end": end, "shard": args.shard, "shards": shards})
