"""tokens: calibration text to token ids and mask."""

import argparse
import logging

from replaceme.config import CalibrationConfig
from replaceme.data import TOKEN_FIELDS, calibrate
from replaceme.loading import load_tokenizer
from replaceme.options import add_options, from_options
from replaceme.steps.common import load_model, model_argument, out_argument

ONLINE = True
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    model_argument(parser)
    out_argument(parser, "where the tokens go (.safetensors)")
    add_options(parser, CalibrationConfig, TOKEN_FIELDS)


def run(args: argparse.Namespace) -> None:
    """Write the token file."""
    record = load_model(args)
    config = from_options(args, CalibrationConfig)
    tokens, metadata = calibrate(config, load_tokenizer(record["folder"]))
    if tokens.count < record["hidden_size"]:
        log.warning(
            "%s: %d unmasked tokens for a hidden size of %d: the Gram will lack rank; raise `samples` or `tokens`",
            config.dataset,
            tokens.count,
            record["hidden_size"],
        )
    tokens.save(args.out, metadata)
    log.info("%d sequences, %d tokens, sha256 %s", len(tokens.input_ids), tokens.count, tokens.digest()[:12])
