"""publish: keep a copy of record of a run's tables and figures, with the command and machine that made them."""

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

from replaceme.core.errors import ReplaceMeError
from replaceme.core.files import read_json, replacing, write_json, write_text
from replaceme.core.redaction import redacted
from replaceme.provenance.environment import hardware, versions
from replaceme.provenance.job_record import FOLDER
from replaceme.reports.published_page import overview, summary
from replaceme.steps.common import new_folder, out_argument

ONLINE = False
log = logging.getLogger(__name__)
MEASURES = "evaluate"  # the step whose machine counts
FOLDERS = ("tables", "figures")
README, RECORD = "README.md", "record.json"
KINDS = (".csv", ".md", ".svg")  # what a reader opens; of these .html and .tex are made again in no time
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w.-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the step."""
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of a finished run")
    parser.add_argument("--command", required=True, help="command that made it")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="markdown file whose table blocks are renewed")
    out_argument(parser, "folder of record", new_folder)


def run(args: argparse.Namespace) -> None:
    """Copy and record the results, write the page that shows all (README.md), and renew the tables in another
    README.
    """
    files = sorted(path for name in FOLDERS for path in (args.results / name).glob("*") if path.suffix in KINDS)
    if not any(path.parent.name == "tables" for path in files):
        raise ReplaceMeError(f"{args.results}: no tables; finish `snakemake --cores all` first")
    if (args.out / README).exists() and not (args.out / RECORD).exists():
        raise ReplaceMeError(f"{args.out}: has a {README} that `publish` did not write; give another folder")
    for path in [*files, *args.results.glob("provenance.md")]:
        with replacing(args.out / path.relative_to(args.results)) as copy:
            copy.write_bytes(path.read_bytes())
    record = {"command": redacted(args.command), **_machine(args.results)}
    write_json(args.out / RECORD, record)
    write_text(args.out / README, overview(args.out, record))
    log.info("publish: %d files in %s", len(files) + 2, args.out)
    if args.readme is not None:
        text = args.readme.read_text(encoding="utf-8")
        write_text(args.readme, BLOCK.sub(lambda match: _block(match, args.results), text))


def _machine(results: Path) -> dict[str, Any]:
    """Return hardware and versions of where the benchmarks of a run were measured, or of here if nothing says."""
    records = map(read_json, sorted((results / FOLDER).rglob("*.json")))
    found = [{name: one[name] for name in ("hardware", "versions")} for one in records if one["step"] == MEASURES]
    distinct = {json.dumps(one, sort_keys=True): one for one in found}
    if len(distinct) > 1:
        log.warning("%s: measured on %d kinds of machines or versions; the first is named", results, len(distinct))
    return next(iter(distinct.values()), None) or {"hardware": hardware(ask_gpu=True), "versions": versions()}


def _block(match: re.Match, results: Path) -> str:
    """Return the block of a README with the caption and the summary of a table."""
    table = results / "tables" / f"{match['name']}.md"
    return f"{match[1]}\n{summary(table)}\n\n{match[3]}"
