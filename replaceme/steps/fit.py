"""fit: find the transform T of a cut."""

import argparse
import logging
from typing import Any

from replaceme.checkpoints import model_sha256
from replaceme.config import FitConfig
from replaceme.errors import ReplaceMeError
from replaceme.files import write_json
from replaceme.fitting import fit_section, fit_state
from replaceme.models import pick_device
from replaceme.options import add_options, from_options
from replaceme.rows import Rows
from replaceme.statistics import Statistics
from replaceme.steps.common import (
    check_shards,
    compute_arguments,
    load_cut,
    load_model,
    model_argument,
    out_argument,
    same_model,
    set_threads,
)
from replaceme.transforms import Shards
from replaceme.transforms.resume import STATE

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    parser.add_argument("--statistics", metavar="FILE", help="sum of the statistics; not needed for identity")
    parser.add_argument(
        "--shards", nargs="+", metavar="FILE", help="statistics of every shard; needed for a ridge chosen automatically"
    )
    parser.add_argument(
        "--rows", metavar="FOLDER", help="rows of the `rows` step; needed for all but l2 in closed form"
    )
    out_argument(parser, "folder for transform.safetensors and fit.json")
    add_options(parser, FitConfig)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the transform and its report."""
    set_threads(args.threads)
    record = load_model(args)
    config = from_options(args, FitConfig)
    cut = load_cut(args.cut)
    same_model(record, cut, args.cut)
    origin = {"model_sha256": model_sha256(record), "start": cut["start"], "end": cut["end"]}
    statistics = None
    if args.statistics is not None:
        statistics, metadata = Statistics.load(args.statistics)
        same_model(record, metadata, args.statistics)
        if (metadata["start"], metadata["end"]) != (cut["start"], cut["end"]):
            raise ReplaceMeError(f"{args.statistics}: of another cut than {args.cut}; make it again")
        if "shard" in metadata and metadata["shards"] > 1:
            raise ReplaceMeError(
                f"{args.statistics}: one of {metadata['shards']} shards; add them with `replaceme sum`"
            )
        origin = {key: value for key, value in metadata.items() if key != "shard"}
    elif config.transform != "identity":
        raise ReplaceMeError("options: this fit needs --statistics, made by `replaceme gram` and `replaceme sum`")
    rows = _rows(args, config, origin)
    device = pick_device(args.device) if rows else "cpu"
    state = fit_state(args.out / STATE, config, rows, device) if rows else None
    shards = _shards(args, config, origin)
    found = fit_section(config, statistics, record["hidden_size"], shards, rows, device, state)
    found.save(args.out / "transform.safetensors", origin)
    write_json(args.out / "fit.json", {**config.model_dump(), **found.report, **origin})
    if state:
        state.remove()
    numbers = {key: value for key, value in found.report.items() if not isinstance(value, list)}
    log.info("fit: %s", ", ".join(f"{key} {value}" for key, value in numbers.items()))


def _rows(args: argparse.Namespace, config: FitConfig, origin: dict[str, Any]) -> Rows | None:
    """The rows of the same model, tokens and cut as the statistics, where the fit needs them."""
    if not config.needs_rows:
        return None
    if not args.rows:
        what = f"an {config.objective}" if config.objective == "l2" else f"a {config.objective}"
        raise ReplaceMeError(f"options: {what} fit by {config.solver} needs --rows, made by `replaceme rows`")
    rows = Rows.open(args.rows)
    if config.needs_state:
        rows.require_state()
    if rows.origin != {key: value for key, value in origin.items() if key != "shards"}:
        raise ReplaceMeError(f"{args.rows}: of another model, calibration or cut than {args.statistics}; make it again")
    return rows


def _shards(args: argparse.Namespace, config: FitConfig, origin: dict[str, Any]) -> Shards | None:
    """The shards that the statistics are the sum of, where the fit needs them."""
    if not config.automatic:
        return None
    if not args.shards:
        raise ReplaceMeError("options: ridge auto needs --shards, the files that `replaceme sum` added up")
    paths, shared = check_shards(args.shards)
    if shared != origin:
        raise ReplaceMeError(f"{args.statistics}: not the sum of the shards given; make it again")
    return Shards(len(paths), lambda shard: Statistics.load(paths[shard])[0])
