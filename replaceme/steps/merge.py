"""merge: write the shortened checkpoint."""

import argparse

from replaceme.methods.found import Found
from replaceme.methods.saving import finish_found
from replaceme.steps.common import new_folder, out_argument
from replaceme.steps.fitted import fitted_arguments, load_fitted
from replaceme.surgery.fold import finish_pruned
from replaceme.surgery.linked_shards import twins_of
from replaceme.surgery.write_checkpoint import merging

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    fitted_arguments(parser)
    out_argument(parser, "folder of the new checkpoint", new_folder)


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint."""
    record, cut, found, origin = load_fitted(args)
    finish = finish_found if isinstance(found, Found) else finish_pruned
    with merging(record.folder, args.out, record.files, twins=twins_of(args.out)) as merger:
        finish(merger, record, cut, found, origin)
