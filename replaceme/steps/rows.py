"""rows: store m and r of each token (see `targets`) of each group of a cut, for the fits that need more than sums."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from replaceme.activations.row_collector import RowOptions, writing_rows
from replaceme.config.command_line import add_options, from_options, option_of
from replaceme.config.fits import FitConfig
from replaceme.core.cut_record import Cut
from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import model_record, neurons, new_folder, out_argument, same_model
from replaceme.steps.forward import Forward, forward_arguments
from replaceme.steps.shared_pass import Share, run_pass

ONLINE = False
OPTIONS = ("placement", "recycle", "recycle_from")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    out_argument(parser, "folder of the rows, with one for each group in it", new_folder)
    forward_arguments(parser)
    add_options(parser, FitConfig, ("fit_tokens", *OPTIONS))
    parser.add_argument("--recycled", metavar="FILE", help="neurons of the `recycle` step; needed with --recycle")
    parser.add_argument("--state", action="store_true", help="also the residual stream, for objective cosine_exact")
    parser.add_argument("cut", metavar="CUT", help="cut.json of the `cut` step")


def run(args: argparse.Namespace) -> None:
    """Write the rows."""
    cut, record = Cut.load(args.cut), model_record(args)
    same_model(record, cut.model_sha256, args.cut)
    _check_folder(args.out)
    run_pass("rows", args, work)


def _check_folder(out: Path) -> None:
    """Raise ReplaceMeError for a folder that holds more than rows, as it is replaced as a whole."""
    inside = (path.name for path in (out.iterdir() if out.is_dir() else ()))
    foreign = sorted(name for name in inside if not name.isdigit() and not name.startswith("."))
    if foreign:
        raise ReplaceMeError(f"{out}: holds {foreign[0]} and would be replaced; choose another folder")


@contextmanager
def work(args: argparse.Namespace, forward: Forward, out: Path) -> Iterator[Share]:
    """Write the rows to the folder `out` during the pass."""
    cut = Cut.load(args.cut)
    regression = from_options(args, FitConfig, OPTIONS).regression
    origin = replace(forward.origin, groups=cut.groups)
    options = RowOptions(
        fit_tokens=option_of(args, FitConfig, "fit_tokens"),
        with_state=args.state,
        regression=regression,
        recycled=neurons(args.recycled, regression, origin),
        origin=replace(origin, kind=regression.kind),
    )
    given = (forward.model, forward.family, forward.tokens.count, cut.groups, options)
    with writing_rows(out, *given) as collectors:
        yield Share(collectors, disk=sum(one.needed for one in collectors))
