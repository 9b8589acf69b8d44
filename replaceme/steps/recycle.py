"""recycle: choose the neurons of the carrier's MLP that are given linear features of its input to pass on."""

import argparse
from dataclasses import replace

import torch

from replaceme.activations.recycled_neurons import activation_of, choose_neurons, save_recycled
from replaceme.activations.statistics import Statistics
from replaceme.config.command_line import add_options, from_options
from replaceme.config.fits import FitConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import load_metadata
from replaceme.core.origin import Origin
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import pick_device, stored_dtype
from replaceme.steps.common import (
    compute_arguments,
    model_argument,
    model_record,
    out_argument,
    same_model,
    set_threads,
)

ONLINE = False
OPTIONS = ("placement", "weighting", "recycle")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    parser.add_argument("statistics", metavar="STATISTICS", help="sums of `gram --before`, added by `sum`")
    add_options(parser, FitConfig, OPTIONS)
    out_argument(parser, "where the neurons go (.safetensors)")
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the neurons of every group."""
    set_threads(args.threads)
    record = model_record(args)
    config = from_options(args, FitConfig, OPTIONS)
    if config.recycle is None:
        raise ReplaceMeError("options: --recycle is needed, the share of the neurons")
    origin = Origin.of(load_metadata(args.statistics))
    same_model(record, origin.model_sha256, args.statistics)
    if origin.kind != config.regression.before.kind:
        raise ReplaceMeError(f"{args.statistics}: sums of {origin.kind}, not of {config.regression.before.kind}")
    model_config = read_config(record.folder)
    dtype = getattr(torch, stored_dtype(model_config))
    device = pick_device(args.device)
    sums = (Statistics.load(args.statistics, group)[0].to(device) for group in range(len(origin.groups)))
    chosen = [choose_neurons(one, config.recycle, activation_of(model_config), dtype) for one in sums]
    save_recycled(args.out, chosen, replace(origin, kind=None).content)
