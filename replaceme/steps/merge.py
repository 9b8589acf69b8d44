"""merge: write the shortened checkpoint."""

import argparse

from replaceme.card import model_card
from replaceme.errors import ReplaceMeError
from replaceme.files import read_json
from replaceme.fold import merge
from replaceme.provenance import versions
from replaceme.steps.common import load_model, model_argument, out_argument, same_model
from replaceme.transforms import Transform

HELP = "Fold a transform into the checkpoint and drop the blocks of the cut."
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
    cut = read_json(args.cut)
    same_model(record, cut, args.cut)
    transform, origin = Transform.load(args.transform)
    same_model(record, origin, args.transform)
    if (origin.get("start", cut["start"]), origin.get("end", cut["end"])) != (cut["start"], cut["end"]):
        raise ReplaceMeError(f"{args.transform}: fitted for another cut than {args.cut}; fit it again")
    write_pruned(record, cut, transform, args.out, origin)


def write_pruned(record: dict, cut: dict, transform: Transform, out, origin: dict) -> dict:
    """Write the checkpoint with its provenance and model card; returns the provenance."""
    provenance = {
        "source": {key: record[key] for key in ("source", "revision", "architecture", "parameters", "files")},
        "cut": {key: value for key, value in cut.items() if key != "candidates"},
        "fit": transform.report,
        "origin": origin,
        "versions": versions(),
    }
    matrix = None if transform.report["solver"] == "identity" else transform.matrix
    merge(record["folder"], cut, matrix, out, provenance, model_card(provenance))
    return provenance
