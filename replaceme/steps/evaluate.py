"""evaluate: benchmark one model, by lm-eval, or encoders of images and texts with clip-benchmark."""

import argparse
import json
import logging
from typing import Any

from replaceme.config.base import Strict
from replaceme.config.command_line import add_options, from_options
from replaceme.config.evaluations import OPTIONS, EvaluationConfig, TaskConfig, ZeroShotConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import LaterChecks, write_json
from replaceme.core.validation import validated
from replaceme.evaluation.evaluate import evaluate
from replaceme.evaluation.zeroshot import evaluate_zeroshot
from replaceme.models.loading import RunsOn
from replaceme.models.model_config import pick_device, pick_dtype
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, out_argument, set_threads, weights_folder

log = logging.getLogger(__name__)
ONLINE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    out_argument(parser, "where the results go (.json)")
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="NAME[={...}]",
        dest="task",
        help="task, once for each; options as JSON: --task 'winogrande={\"fewshot\": 5}'",
    )
    parser.add_argument(
        "--tasks",
        action="extend",
        type=lambda names: names.split(","),
        metavar="NAME,...",
        dest="task",
        help="or several tasks, as lm-eval takes them",
    )
    parser.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples in the prompt of the tasks that name no `fewshot`"
    )
    parser.add_argument(
        "--zeroshot",
        action="append",
        default=[],
        metavar="NAME={...}",
        dest="labelled",
        help='or labelled images, once for each: --zeroshot \'photos={"images": "photos/"}\'',
    )
    add_options(parser, EvaluationConfig, OPTIONS)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the results."""
    config = section_of(args)
    set_threads(args.threads)
    check = LaterChecks()
    folder, model_config = weights_folder(args.model, check)
    device = pick_device(args.device)
    runs_on = RunsOn(device, pick_dtype(config.dtype, device, model_config), gpus_of(args))
    if config.zeroshot:
        check.wait()
        found = evaluate_zeroshot(folder, config, runs_on)
    else:
        found = evaluate(folder, config, runs_on, check.wait)
    write_json(args.out, found)
    for name, task in found["tasks"].items():
        error = "" if task["stderr"] is None else f" ± {task['stderr']:.4f}"
        log.info("%s: %s %.4f%s", name, task["metric"], task["value"], error)


def section_of(args: argparse.Namespace) -> EvaluationConfig:
    """Return the section that the options describe."""
    args.tasks = dict(_named("--task", text, TaskConfig) for text in args.task)
    for task in args.tasks.values():
        task["fewshot"] = args.num_fewshot if task["fewshot"] is None else task["fewshot"]
    args.zeroshot = dict(_named("--zeroshot", text, ZeroShotConfig) for text in args.labelled)
    return from_options(args, EvaluationConfig)


def _named(option: str, text: str, schema: type[Strict]) -> tuple[str, dict[str, Any]]:
    """Split an option's value into a name and the section that the JSON after it describes."""
    name, _, options = text.partition("=")
    try:
        raw = json.loads(options or "{}")
    except json.JSONDecodeError as error:
        raise ReplaceMeError(f"options: {option} {name}: not valid JSON after '=' ({error})") from None
    return name, validated(schema, raw, f"{option} {name}").model_dump()
