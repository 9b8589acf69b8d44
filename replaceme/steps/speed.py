"""speed: measure size, throughput and memory of one model."""

import argparse

from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.evaluations import EvaluationConfig, SpeedConfig
from replaceme.core.files import write_json
from replaceme.evaluation.speed import speed
from replaceme.models.loading import RunsOn
from replaceme.models.model_config import pick_device, pick_dtype
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, out_argument, set_threads, weights_folder

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    out_argument(parser, "where the results go (.json)")
    add_options(parser, SpeedConfig)
    add_options(parser, EvaluationConfig, ("dtype",))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the results."""
    config = from_options(args, SpeedConfig)
    set_threads(args.threads)
    folder, model_config = weights_folder(args.model)
    device = pick_device(args.device)
    dtype = pick_dtype(option_of(args, EvaluationConfig, "dtype"), device, model_config)
    write_json(args.out, speed(folder, config, RunsOn(device, dtype, gpus_of(args))))
