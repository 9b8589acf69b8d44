"""evaluate: benchmarks of one model, by lm-eval."""

import argparse
import json

from replaceme.config import EvaluationConfig, TaskConfig
from replaceme.evaluate import TaskOptions, evaluate
from replaceme.files import write_json
from replaceme.models import pick_device, pick_dtype
from replaceme.options import add_options, from_options
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, out_argument, set_threads, weights_folder
from replaceme.validation import validated

ONLINE = True
OPTIONS = ("include", "perplexity", "batch_size", "limit", "seed", "dtype")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    out_argument(parser, "where the results go (.json)")
    parser.add_argument(
        "--task",
        action="append",
        required=True,
        metavar="NAME[={...}]",
        dest="task",
        help="task, once for each; options as JSON: --task 'winogrande={\"fewshot\": 5}'",
    )
    add_options(parser, EvaluationConfig, OPTIONS)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the results."""
    args.tasks = dict(_task(text) for text in args.task)
    config = from_options(args, EvaluationConfig)
    set_threads(args.threads)
    folder, model_config = weights_folder(args.model)
    device = pick_device(args.device)
    results = evaluate(
        folder,
        {name: TaskOptions(**task.model_dump()) for name, task in config.tasks.items()},
        include=config.include,
        perplexity_task=config.perplexity,
        batch_size=config.batch_size,
        limit=config.limit,
        seed=config.seed,
        device=device,
        dtype=pick_dtype(config.dtype, device, model_config),
        gpus=gpus_of(args),
    )
    write_json(args.out, results)


def _task(text: str) -> tuple[str, dict]:
    name, _, options = text.partition("=")
    try:
        raw = json.loads(options or "{}")
    except json.JSONDecodeError as error:
        from replaceme.errors import ReplaceMeError

        raise ReplaceMeError(f"options: --task {name}: not valid JSON after '=' ({error})") from None
    return name, validated(TaskConfig, raw, f"--task {name}").model_dump()
