"""generate: let the model answer the prompts of a calibration source (.jsonl)."""

import argparse
import json
import logging

from replaceme.calibration.answers import answers
from replaceme.calibration.tokens import PROMPT_FIELDS
from replaceme.config.calibrations import CalibrationConfig, GenerationConfig
from replaceme.config.command_line import add_options, from_options
from replaceme.core.files import write_text
from replaceme.models.checkpoints import read_config
from replaceme.models.loading import Held, load_causal_model, load_tokenizer
from replaceme.models.model_config import check_calibration, check_length, pick_device, pick_dtype
from replaceme.steps.common import compute_arguments, gpus_of, model_argument, model_record, out_argument, set_threads

ONLINE = True
log = logging.getLogger(__name__)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    model_argument(parser)
    out_argument(parser, "where the prompts with their answers go (.jsonl)")
    add_options(parser, CalibrationConfig, PROMPT_FIELDS)
    add_options(parser, GenerationConfig)
    compute_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file of answers."""
    record = model_record(args)
    source = from_options(args, CalibrationConfig, PROMPT_FIELDS)
    generation = from_options(args, GenerationConfig)
    model_config = read_config(record.folder)
    check_calibration(model_config, source, record.source)
    check_length(model_config, source.tokens, record.source)
    set_threads(args.threads)
    device = pick_device(args.device)
    dtype = pick_dtype(source.dtype, device, model_config)
    model = load_causal_model(record.folder, dtype, device, Held(gpus_of(args)))
    found = answers(model, load_tokenizer(record.folder), source, generation)
    write_text(args.out, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found))
    log.info("%d answers", len(found))
