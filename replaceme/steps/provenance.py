"""provenance: write a page of a run's sources, versions and machines."""

import argparse
from pathlib import Path

from replaceme.steps.common import out_argument
from replaceme.steps.recorded import record_arguments, records_of

ONLINE = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    record_arguments(parser)
    parser.add_argument("--title", default="What the numbers were made from and with", help="heading of the page")
    out_argument(parser, "path of the page without its ending", Path)


def run(args: argparse.Namespace) -> None:
    """Write .html and .md."""
    from replaceme.core.files import write_text
    from replaceme.reports.html import html
    from replaceme.reports.render import markdown
    from replaceme.reports.sources import parts

    shown = parts(records_of(args))
    notes = [
        "Whole hashes, and those of every file: results/<model>/model.json; model/replaceme.json of each checkpoint."
    ]
    write_text(Path(f"{args.out}.html"), html(shown, args.title, notes))
    write_text(Path(f"{args.out}.md"), markdown(shown, args.title, notes))
