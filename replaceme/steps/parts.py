"""parts: measure what each block, attention and MLP of a model costs."""

import argparse

from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.evaluations import EvaluationConfig, SpeedConfig
from replaceme.config.units import PARAMETERS, TIMED, UNITS
from replaceme.evaluation.parts import part_costs
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import ON_CPU, RunsOn
from replaceme.models.model_config import pick_device, pick_dtype
from replaceme.models.model_record import ModelRecord
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, model_record, out_argument, set_threads

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    parser.add_argument(
        "--of",
        required=True,
        choices=[unit for unit in UNITS if unit != PARAMETERS],
        help="unit; times are measured on this machine, the others counted by config.json, on no device",
    )
    out_argument(parser, "where the costs go (.json)")
    add_options(parser, SpeedConfig)
    add_options(parser, EvaluationConfig, ("dtype",))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the costs."""
    set_threads(args.threads)
    record, options = model_record(args), from_options(args, SpeedConfig)
    runs_on = _runs_on(args, record) if args.of in TIMED else ON_CPU
    part_costs(record, args.of, options, runs_on).save(args.out)


def _runs_on(args: argparse.Namespace, record: ModelRecord) -> RunsOn:
    device = pick_device(args.device)
    dtype = pick_dtype(option_of(args, EvaluationConfig, "dtype"), device, read_config(record.folder))
    return RunsOn(device, dtype, gpus_of(args))
