"""cost: what the rows of a table took to make."""

import argparse
import json
from pathlib import Path

from replaceme.errors import ReplaceMeError
from replaceme.steps.common import out_argument

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the step."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of the run, with cost/ in it")
    parser.add_argument(
        "--jobs",
        required=True,
        metavar="JSON",
        help='outputs of the jobs behind each row: {"model/calibration/cut/fit": ["results/model/model.json", ...]}',
    )
    parser.add_argument("--caption", default="", help="sentence above the table")
    out_argument(parser, "path of the table without its ending")


def run(args: argparse.Namespace) -> None:
    """Write the table in all formats."""
    from replaceme.cost_table import collect, notes, parts
    from replaceme.render import write_parts

    try:
        jobs = json.loads(args.jobs)
    except json.JSONDecodeError as error:
        raise ReplaceMeError(f"options: --jobs: not valid JSON ({error})") from None
    frame = collect(jobs, args.results)
    write_parts(parts(frame), frame, args.out, args.caption, notes(frame), "×: multiple of the cheapest row.")
