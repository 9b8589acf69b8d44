"""heal: train a merged checkpoint for a while."""

import argparse
from pathlib import Path

from replaceme.calibration.tokens import check_vocabulary, load_tokens
from replaceme.config.command_line import add_options, from_options
from replaceme.config.healings import TrainingConfig
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import pick_device
from replaceme.steps.common import compute_arguments, gpus_of, new_folder, out_argument, set_threads, verify_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("folder", metavar="MERGED", type=Path, help="folder of the `merge` step, or of `prune`")
    parser.add_argument("tokens_file", metavar="TOKENS", help="token file of the `tokens` step, the text to train on")
    out_argument(parser, "folder of the new checkpoint", new_folder)
    parser.add_argument(
        "--report", type=Path, metavar="PATH", help="where the options, losses and checks go (healing.json)"
    )
    parser.add_argument(
        "--original",
        metavar="MODEL",
        help="for a distillation: model.json, folder or Hub id of the model before it was shortened (default: the "
        "source in the record of MERGED)",
    )
    add_options(parser, TrainingConfig)
    compute_arguments(parser)
    verify_argument(parser, "what was trained")


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint and its report."""
    from replaceme.healing.heal import Output, heal_checkpoint

    set_threads(args.threads)
    options = from_options(args, TrainingConfig)
    tokens, metadata = load_tokens(args.tokens_file)
    check_vocabulary(tokens, read_config(args.folder), args.tokens_file)
    output = Output(args.out, args.report, args.verify)
    where = pick_device(args.device), gpus_of(args)
    heal_checkpoint(args.folder, tokens, metadata, options, output, *where, original=args.original)
