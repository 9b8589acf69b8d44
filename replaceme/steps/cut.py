"""cut: choose which run of blocks goes."""

import argparse
import logging
from dataclasses import replace

from replaceme.config.command_line import add_options, from_options
from replaceme.config.cuts import CutConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.cuts.distances import load
from replaceme.cuts.possible import choose_possible
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import check_cut
from replaceme.steps.common import (
    costs_argument,
    model_argument,
    model_record,
    out_argument,
    read_record,
    same_model,
)

ONLINE = False
MEASURED_ON = ("tokens_sha256", "tokens", "calibration", "dtype", "batch_size")
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    parser.add_argument("--distances", metavar="FILE", help="distance file, for the metrics of pairs of states")
    parser.add_argument("--candidates", metavar="FILE", help="candidates file, for the other metrics")
    costs_argument(parser)
    out_argument(parser, "where cut.json goes")
    add_options(parser, CutConfig)


def run(args: argparse.Namespace) -> None:
    """Write cut.json."""
    cut = from_options(args, CutConfig)
    record = model_record(args).with_costs(args.costs, cut.of)
    check_cut(read_config(record.folder), cut, record.source)
    distances = candidates = None
    origin: dict = {}
    if cut.needs_candidates:
        if args.candidates is None:
            raise ReplaceMeError(f"options: metric {cut.metric} needs --candidates, made by `replaceme candidates`")
        origin = read_record(args.candidates, "candidates")
        candidates = origin["candidates"]
        same_model(record, origin.get("model_sha256"), args.candidates)
    elif cut.start is None:
        if args.distances is None:
            raise ReplaceMeError(f"options: metric {cut.metric} needs --distances, made by `replaceme distances`")
        distances, origin = load(args.distances)
        same_model(record, origin.get("model_sha256"), args.distances)
    chosen = choose_possible(cut, record, distances, candidates)
    measured_on = {key: origin[key] for key in MEASURED_ON if key in origin}
    replace(chosen, model_sha256=record.sha256, measured_on=measured_on).save(args.out)
    log.info("cut %s of %d blocks by %s", chosen.span, record.num_blocks, chosen.metric)
