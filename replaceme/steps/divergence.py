"""divergence: measure how far a model's predictions are from those of its original, on text that neither has seen."""

import argparse

from replaceme.calibration.tokens import load_tokens
from replaceme.config.command_line import add_options, option_of
from replaceme.config.evaluations import EvaluationConfig
from replaceme.core.files import write_json
from replaceme.evaluation.divergence import check_unseen, divergence
from replaceme.models.loading import RunsOn
from replaceme.models.model_config import pick_device, pick_dtype
from replaceme.steps.common import MODEL_HELP, compute_arguments, gpus_of, out_argument, set_threads, weights_folder

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("original", metavar="ORIGINAL", help=f"the model before: {MODEL_HELP}")
    parser.add_argument("model", metavar="MODEL", help="the model that was made of it, by whatever method: a folder")
    parser.add_argument("--tokens", required=True, metavar="FILE", help="token file of the `tokens` step")
    parser.add_argument(
        "--seen", nargs="+", default=[], metavar="FILE", help="token files that MODEL was made with, none to be shared"
    )
    out_argument(parser, "where the results go (.json)")
    add_options(parser, EvaluationConfig, ("dtype",))
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the results."""
    set_threads(args.threads)
    tokens, metadata = load_tokens(args.tokens)
    for path in args.seen:
        check_unseen(tokens, load_tokens(path)[0], path)
    original, model_config = weights_folder(args.original)
    folder, _ = weights_folder(args.model)
    device = pick_device(args.device)
    dtype = pick_dtype(option_of(args, EvaluationConfig, "dtype"), device, model_config)
    found = divergence(original, folder, tokens, RunsOn(device, dtype, gpus_of(args)))
    write_json(args.out, {**found, "text": metadata})
