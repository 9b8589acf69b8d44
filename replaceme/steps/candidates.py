"""candidates: measure the cost of each possible cut of the compared sizes, after its own fit or without one."""

import argparse

from replaceme.config.command_line import add_options, from_options
from replaceme.config.cuts import OF_CANDIDATES, CutConfig
from replaceme.core.files import write_json
from replaceme.cuts.after_fit import candidates_of
from replaceme.models.checkpoints import read_config
from replaceme.models.model_config import check_cut
from replaceme.steps.common import costs_argument, model_record, out_argument
from replaceme.steps.forward import forward_arguments, load_forward

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "where candidates.json goes")
    costs_argument(parser)
    add_options(parser, CutConfig, (*OF_CANDIDATES, "metric"))
    forward_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the metrics of all candidates."""
    cut = from_options(args, CutConfig)
    record = model_record(args).with_costs(args.costs, cut.of)
    check_cut(read_config(record.folder), cut, record.source)
    forward = load_forward(args, record, head=cut.needs_loss)
    found = candidates_of(cut, forward.record, forward.model, forward.family, forward.tokens, forward.batch_size)
    write_json(args.out, {**forward.origin.content, **found})
