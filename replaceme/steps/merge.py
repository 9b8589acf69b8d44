"""merge: write the shortened checkpoint."""

import argparse

from replaceme.errors import ReplaceMeError
from replaceme.fold import write_pruned
from replaceme.steps.common import load_cut, load_model, model_argument, out_argument, same_model
from replaceme.transforms import Transform

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    parser.add_argument("transform", metavar="TRANSFORM", help="transform.safetensors of the `fit` step")
    out_argument(parser, "folder of the new checkpoint")


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint."""
    record = load_model(args)
    cut = load_cut(args.cut)
    same_model(record, cut, args.cut)
    transforms, origin = Transform.load_all(args.transform)
    same_model(record, origin, args.transform)
    if origin.get("groups", cut["groups"]) != cut["groups"]:
        raise ReplaceMeError(f"{args.transform}: fitted for another cut than {args.cut}; fit it again")
    write_pruned(record, cut, transforms, args.out, origin)
