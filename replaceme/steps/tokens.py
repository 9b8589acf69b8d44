"""tokens: turn calibration text into token ids and mask, or images into pixel values."""

import argparse
import logging

from replaceme.calibration.tokens import TOKEN_FIELDS, calibration_for
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.command_line import add_options, from_options
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import check_calibration
from replaceme.steps.common import model_argument, model_record, out_argument

ONLINE = True
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    out_argument(parser, "where the tokens go (.safetensors)")
    add_options(parser, CalibrationConfig, TOKEN_FIELDS)


def run(args: argparse.Namespace) -> None:
    """Write the token file."""
    record = model_record(args)
    config = from_options(args, CalibrationConfig)
    check_calibration(read_config(record.folder), config, record.source)
    tokens, metadata = calibration_for(record.folder, config)
    if tokens.count < record.hidden_size:
        log.warning(
            "%s: %d unmasked tokens for a hidden size of %d: the Gram will lack rank; raise `samples` or `tokens`",
            config.source,
            tokens.count,
            record.hidden_size,
        )
    tokens.save(args.out, metadata)
    log.info("%d samples, %d tokens, sha256 %s", len(tokens), tokens.count, tokens.digest()[:12])
