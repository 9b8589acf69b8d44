"""fit: find the transforms T of a cut."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from replaceme.activations.rows import Rows
from replaceme.activations.statistics import Statistics
from replaceme.config.calibrations import FORWARD, CalibrationConfig
from replaceme.config.command_line import add_options, from_options
from replaceme.config.fits import METHODS, FitConfig
from replaceme.config.methods import MethodConfig
from replaceme.core.cut_record import Cut, check_whole
from replaceme.core.errors import DamagedError, ReplaceMeError
from replaceme.core.files import write_json
from replaceme.core.origin import Origin
from replaceme.fitting.fit_cut import fit_cut, fit_state, state_identity
from replaceme.fitting.passes import Evidence, Passes
from replaceme.methods.fitting import fit_method
from replaceme.methods.registry import check_section
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import family_of, pick_device
from replaceme.models.model_record import ModelRecord
from replaceme.steps.common import (
    check_shards,
    compute_arguments,
    model_argument,
    model_record,
    neurons,
    new_folder,
    out_argument,
    same_model,
    set_threads,
    summed_origin,
)
from replaceme.steps.forward import load_passes
from replaceme.transforms.collapse import as_chosen
from replaceme.transforms.resume import STATE, State
from replaceme.transforms.ridge import Shards
from replaceme.transforms.transform import Transform, joint_report

ONLINE = False
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")
    parser.add_argument("--statistics", metavar="FILE", help="sum of the statistics; not needed for identity")
    parser.add_argument(
        "--shards", nargs="+", metavar="FILE", help="statistics of every shard; needed for a ridge chosen automatically"
    )
    parser.add_argument(
        "--rows", metavar="FOLDER", help="rows of the `rows` step; needed for all but l2 in closed form"
    )
    parser.add_argument("--recycled", metavar="FILE", help="neurons of the `recycle` step; needed with --recycle")
    parser.add_argument(
        "--tokens",
        dest="tokens_file",
        metavar="FILE",
        help="token file of the `tokens` step; needed for a sequential estimation, for blocks that normalise what "
        "their MLP puts out, and for all methods but replaceme",
    )
    out_argument(parser, "folder for transform.safetensors and fit.json", new_folder)
    add_options(parser, METHODS)
    add_options(parser, CalibrationConfig, FORWARD)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the transforms and their report."""
    set_threads(args.threads)
    record = model_record(args)
    config = from_options(args, METHODS)
    model_config = read_config(record.folder)
    check_section(model_config, config, record.source)
    cut = Cut.load(args.cut)
    same_model(record, cut.model_sha256, args.cut)
    groups = cut.groups
    check_whole(cut, config.of_whole_blocks)
    if config.is_other:
        _fit_method(args, record, config, cut)
        return
    origin = _origin(args, record, config, cut)

    def gathered(group: int) -> Evidence:
        statistics = None if args.statistics is None else Statistics.load(args.statistics, group)[0]
        rows = _rows(args, config, origin, group)
        device = pick_device(args.device)
        state = fit_state(args.out / STATE.format(group=group), config, rows, device) if rows else None
        changed = neurons(args.recycled, config.regression, origin)
        shards = _shards(args, config, origin, group)
        return Evidence(statistics, shards, rows, device, changed and changed[group], state)

    def passes() -> Passes:
        nonlocal origin
        found, read = load_passes(args, record, config.needs_loss)
        origin = _with_text(args, origin, read)
        if not config.end_to_end:
            return found
        identity = state_identity(config, origin.content, found.device)
        return replace(found, state=State(args.out / STATE.format(group=config.objective), identity))

    family = family_of(model_config, record.source)
    # a sequential estimation has no sums, also where the groups that were asked for have become one
    summed = args.statistics is not None or config.unfitted
    found = fit_cut(config, groups, record, gathered if summed else None, passes, family)
    found = as_chosen(cut, found)
    report = joint_report(found)
    Transform.save_all(args.out / "transform.safetensors", found, origin.content)
    _write_report(args, config, report, origin, not cut.pairs_up)
    _remove_states(args.out)


def _fit_method(args: argparse.Namespace, record: ModelRecord, config: MethodConfig, cut: Cut) -> None:
    """Write the result of another method, from forward passes of its own."""
    passes, read = load_passes(args, record, config.needs_loss)
    origin = replace(read, groups=cut.groups)
    state = State(args.out / STATE.format(group=config.method), state_identity(config, origin.content, passes.device))
    found = fit_method(replace(passes, state=state), config, cut, record)
    found.save(args.out / "transform.safetensors", origin.content)
    _write_report(args, config, found.report, origin)
    _remove_states(args.out)


def _remove_states(folder: Path) -> None:
    """Remove the states of fits in a folder: of the one that is done, and of one of other options that was killed."""
    for path in folder.glob(STATE.format(group="*")):
        path.unlink(missing_ok=True)


def _write_report(
    args: argparse.Namespace, config: MethodConfig, report: dict[str, Any], origin: Origin, divided: bool = False
) -> None:
    """Write the report; `divided`: the cut leaves blocks without an attention or an MLP, which takes code."""
    facts = {"own_code": config.own_code or divided, "by": config.by}
    write_json(args.out / "fit.json", {**config.model_dump(), **facts, **report, **origin.content})
    numbers = {key: value for key, value in report.items() if not isinstance(value, list | dict)}
    log.info("fit: %s", ", ".join(f"{key} {value}" for key, value in numbers.items()))


def _origin(args: argparse.Namespace, record: ModelRecord, config: FitConfig, cut: Cut) -> Origin:
    """Return the origin of the transforms, after a check that the statistics belong to the cut and the fit."""
    if args.statistics is None:
        if not config.unfitted and config.estimation != "sequential":
            raise ReplaceMeError("options: this fit needs --statistics, made by `replaceme gram` and `replaceme sum`")
        return Origin(model_sha256=record.sha256, groups=cut.groups)
    origin = summed_origin(args.statistics)
    same_model(record, origin.model_sha256, args.statistics)
    if origin.groups != cut.groups:
        raise ReplaceMeError(f"{args.statistics}: of another cut than {args.cut}; make it again")
    if origin.kind != config.regression.kind:
        raise ReplaceMeError(
            f"{args.statistics}: of placement and weighting {origin.kind}, not {config.regression.kind}"
        )
    return origin


def _with_text(args: argparse.Namespace, origin: Origin, read: Origin) -> Origin:
    """Return the origin of transforms that passes over a text are for too, after a check that statistics are of it."""
    if args.statistics is None:
        return replace(read, groups=origin.groups)
    if not read.is_shared_by(origin):
        raise ReplaceMeError(f"{args.tokens_file}: not the text of {args.statistics}, or it ran otherwise")
    return origin


def _rows(args: argparse.Namespace, config: FitConfig, origin: Origin, group: int) -> Rows | None:
    """Open the rows of a group, of the same model, tokens and cut as the statistics, if the fit needs them."""
    if not config.needs_rows:
        return None
    if not args.rows:
        what = f"an {config.objective}" if config.objective == "l2" else f"a {config.objective}"
        raise ReplaceMeError(f"options: {what} fit by {config.solver} needs --rows, made by `replaceme rows`")
    try:
        rows = Rows.open(Path(args.rows) / str(group))
    except DamagedError as error:
        raise error.within(args.rows) from error  # the rows of all groups are made together
    if config.needs_state:
        rows.require_state()
    if rows.origin != replace(origin, shards=None):
        raise ReplaceMeError(
            f"{args.rows}: of another model, calibration or cut, or other rows, than {args.statistics}; make it again"
        )
    return rows


def _shards(args: argparse.Namespace, config: FitConfig, origin: Origin, group: int) -> Shards | None:
    """Open the shards that the statistics are the sum of, if the fit needs them."""
    if not config.automatic:
        return None
    if not args.shards:
        raise ReplaceMeError("options: ridge auto needs --shards, the files that `replaceme sum` added up")
    paths, shared = check_shards(args.shards)
    if shared != origin:
        raise ReplaceMeError(f"{args.statistics}: not the sum of the shards given; make it again")
    return Shards(len(paths), lambda shard: Statistics.load(paths[shard], group)[0])
