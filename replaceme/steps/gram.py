"""gram: statistics of one cut over one shard of the calibration tokens."""

import argparse

from replaceme.checkpoints import read_config
from replaceme.config import CalibrationConfig
from replaceme.data import load_tokens
from replaceme.files import read_json
from replaceme.gather import gather_cut
from replaceme.models import require_foldable
from replaceme.options import add_options
from replaceme.steps.common import (
    calibration_of,
    compute_arguments,
    load_blocks,
    load_model,
    model_argument,
    out_argument,
    same_model,
)
from replaceme.steps.distances import batch_size_of

HELP = "Accumulate the Gram and cross matrices of a cut over one shard of the calibration tokens."
ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step")
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    out_argument(parser, "where the statistics go (.safetensors)")
    parser.add_argument("--shard", type=int, default=0, metavar="K", help="shard to compute, from 0. Default: 0.")
    add_options(parser, CalibrationConfig, ("shards", "batch_size", "dtype"))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the statistics of the shard."""
    record = load_model(args)
    cut = read_json(args.cut)
    same_model(record, cut, args.cut)
    require_foldable(read_config(record["folder"]), record["source"])  # before the forward passes, not after
    tokens, metadata = load_tokens(args.tokens_file)
    model, family = load_blocks(record, args)
    span = (cut["start"], cut["end"])
    shards = getattr(args, "shards", 1)
    statistics = gather_cut(model, family, tokens, span, batch_size_of(args), args.shard, shards)
    origin = {**calibration_of(record, metadata), "start": cut["start"], "end": cut["end"]}
    statistics.save(args.out, {**origin, "shard": args.shard, "shards": shards})
