"""speed: measure size, throughput and memory of one model."""

import argparse
import logging
from typing import Any

from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.evaluations import KERNELS, EvaluationConfig, SpeedConfig
from replaceme.config.tables import RATES
from replaceme.core.files import write_json
from replaceme.evaluation.speed import speed
from replaceme.models.loading import RunsOn
from replaceme.models.model_config import pick_device, pick_dtype
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, out_argument, set_threads, weights_folder

ONLINE = False
UNSTEADY = 0.2  # of the median, is the interquartile range of latencies that say little
log = logging.getLogger(__name__)


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
    found = speed(folder, config, RunsOn(device, dtype, gpus_of(args)))
    write_json(args.out, found)
    _say(found)


def _say(found: dict[str, Any]) -> None:
    """Log the rates, and a warning where the repeats differ too much to be compared with others."""
    prefill, decode = (found[name]["median"] for name in RATES)
    latency, between = (found["latency_s"][name] for name in ("median", "interquartile_range"))
    rates = f"prefill {prefill:.0f}" + ("" if decode is None else f" and decode {decode:.1f}")
    clock = ", by the GPU's kernels alone" if found["clock"] == KERNELS else ""
    log.info("speed: %s tokens/s, latency %.0f ms%s", rates, 1e3 * latency, clock)
    if between > UNSTEADY * latency:
        log.warning(
            "speed: half of the repeats differ by %.0f%% or more: is the machine busy, or has it fewer free cores than "
            "--threads?",
            100 * between / latency,
        )
