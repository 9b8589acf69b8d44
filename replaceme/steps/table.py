"""table: collect one result table from many evaluations."""

import argparse
from pathlib import Path

from replaceme.core.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument(
        "rows", nargs="*", type=Path, metavar="FOLDER", help="results/<model>/<calibration>/<cut>/<fit>"
    )
    parser.add_argument(
        "--baseline", action="append", type=Path, default=[], metavar="FOLDER", help="results/<model>/baseline"
    )
    parser.add_argument("--evaluation", required=True, help="name of the evaluation to show")
    parser.add_argument(
        "--speed", action=argparse.BooleanOptionalAction, default=True, help="whether to show what `speed` measured"
    )
    parser.add_argument("--divergence", action="store_true", help="whether to show what `divergence` measured")
    parser.add_argument("--by", action="store_true", help="whether to say what each fit is found by")
    parser.add_argument(
        "--exports",
        type=lambda text: text.split(","),
        default=[],
        metavar="PROGRAM,...",
        help="programs whose outcomes to show, as `verify --with` writes them",
    )
    parser.add_argument("--caption", default="", help="sentence above the table")
    out_argument(parser, "path of the table without its ending", Path)


def run(args: argparse.Namespace) -> None:
    """Write the table in all formats."""
    from replaceme.reports.render import write
    from replaceme.reports.tables import collect

    if not args.rows and not args.baseline:
        raise ReplaceMeError("table: nothing to show; give folders of rows, and those of their baselines by --baseline")
    frame = collect(
        args.rows, args.baseline, args.evaluation, args.speed, args.divergence, by=args.by, exports=args.exports
    )
    write(frame, args.out, args.caption)
