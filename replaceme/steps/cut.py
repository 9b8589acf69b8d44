"""cut: choose which run of blocks goes."""

import argparse
import logging

from replaceme.config.command_line import add_options, from_options
from replaceme.config.cuts import CutConfig
from replaceme.core.cut_record import described
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import write_json
from replaceme.cuts.choose import choose
from replaceme.cuts.distances import load
from replaceme.models.checkpoints import model_sha256, read_config
from replaceme.models.model_config import check_cut
from replaceme.steps.common import load_model, model_argument, out_argument, read_record, same_model

ONLINE = False
MEASURED_ON = ("tokens_sha256", "tokens", "calibration", "dtype", "batch_size")
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("--distances", metavar="FILE", help="distance file, for the metrics of pairs of states")
    parser.add_argument("--candidates", metavar="FILE", help="candidates file, for the other metrics")
    out_argument(parser, "where cut.json goes")
    add_options(parser, CutConfig)


def run(args: argparse.Namespace) -> None:
    """Write cut.json."""
    record = load_model(args)
    cut = from_options(args, CutConfig)
    check_cut(read_config(record["folder"]), cut, record["source"])
    distances = candidates = None
    origin: dict = {}
    if cut.needs_candidates:
        if args.candidates is None:
            raise ReplaceMeError(f"options: metric {cut.metric} needs --candidates, made by `replaceme candidates`")
        origin = read_record(args.candidates, "candidates")
        candidates = origin["candidates"]
        same_model(record, origin, args.candidates)
    elif cut.start is None:
        if args.distances is None:
            raise ReplaceMeError(f"options: metric {cut.metric} needs --distances, made by `replaceme distances`")
        distances, origin = load(args.distances)
        same_model(record, origin, args.distances)
    chosen = choose(cut, record, distances, candidates)
    measured_on = {key: origin[key] for key in MEASURED_ON if key in origin}
    write_json(args.out, {**chosen, "model_sha256": model_sha256(record), "measured_on": measured_on})
    log.info("cut %s of %d blocks by %s", described(chosen), record["num_blocks"], chosen["metric"])
