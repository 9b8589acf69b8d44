"""cost: add up the cost of making the rows of a table."""

import argparse
from pathlib import Path

from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of the run, with cost/ in it")
    parser.add_argument(
        "--jobs",
        required=True,
        type=Path,
        metavar="FILE",
        help="JSON file of the outputs of the jobs behind each row: "
        '{"model/calibration/cut/fit": ["results/model/model.json", ...]}',
    )
    parser.add_argument("--caption", default="", help="sentence above the table")
    out_argument(parser, "path of the table without its ending", Path)


def run(args: argparse.Namespace) -> None:
    """Write the table in all formats."""
    from replaceme.core.files import read_json
    from replaceme.reports.cost_table import collect, notes, parts
    from replaceme.reports.render import write_parts

    frame = collect(read_json(args.jobs, "give the JSON file that the workflow writes"), args.results)
    write_parts(parts(frame), frame, args.out, args.caption, notes(frame), "×: multiple of the cheapest row.")
