"""recycle: choose the neurons of the carrier's MLP that get other work, and what it is."""

import argparse
from dataclasses import replace

import torch

from replaceme.activations.recycled_neurons import Recycled, activation_of, choose_neurons, save_recycled
from replaceme.activations.statistics import Statistics
from replaceme.config.calibrations import FORWARD, CalibrationConfig
from replaceme.config.command_line import add_options, from_options
from replaceme.config.fits import FitConfig
from replaceme.config.placement import REGRESSION
from replaceme.core.errors import ReplaceMeError
from replaceme.core.origin import Origin
from replaceme.fitting.removed_blocks import choose_removed
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import pick_device, stored_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.placements.placement import REMOVED
from replaceme.steps.common import (
    compute_arguments,
    model_argument,
    model_record,
    out_argument,
    same_model,
    set_threads,
    summed_origin,
)
from replaceme.steps.forward import load_passes

ONLINE = False
OPTIONS = REGRESSION


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    parser.add_argument("statistics", metavar="STATISTICS", help="sums of `gram --before`, added by `sum`")
    add_options(parser, FitConfig, OPTIONS)
    parser.add_argument(
        "--tokens",
        dest="tokens_file",
        metavar="FILE",
        help="token file of the `tokens` step; needed for --recycle-from removed",
    )
    out_argument(parser, "where the neurons go (.safetensors)")
    add_options(parser, CalibrationConfig, FORWARD)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the neurons of every group."""
    set_threads(args.threads)
    record = model_record(args)
    config = from_options(args, FitConfig, OPTIONS)
    if config.recycle is None:
        raise ReplaceMeError("options: --recycle is needed, the share of the neurons")
    origin = summed_origin(args.statistics)
    same_model(record, origin.model_sha256, args.statistics)
    if origin.kind != config.regression.before.kind:
        raise ReplaceMeError(f"{args.statistics}: sums of {origin.kind}, not of {config.regression.before.kind}")
    sums = [Statistics.load(args.statistics, group)[0] for group in range(len(origin.groups))]
    choose = _of_removed if config.recycle_from == REMOVED else _of_input
    save_recycled(args.out, choose(args, record, config, sums, origin), replace(origin, kind=None).content)


def _of_input(
    args: argparse.Namespace, record: ModelRecord, config: FitConfig, sums: list[Statistics], origin: Origin
) -> list[Recycled]:
    """Return neurons that pass on linear features, from sums alone."""
    model_config = read_config(record.folder)
    dtype, device = getattr(torch, stored_dtype(model_config)), pick_device(args.device)
    return [choose_neurons(one.to(device), config.recycle, activation_of(model_config), dtype) for one in sums]


def _of_removed(
    args: argparse.Namespace, record: ModelRecord, config: FitConfig, sums: list[Statistics], origin: Origin
) -> list[Recycled]:
    """Return neurons of the removed blocks, from sums and the text that they are of."""
    passes, read = load_passes(args, record)
    if not read.is_shared_by(origin):
        raise ReplaceMeError(f"{args.tokens_file}: not the text of {args.statistics}, or it ran otherwise")
    return choose_removed(config.regression, origin.groups, sums, passes)
