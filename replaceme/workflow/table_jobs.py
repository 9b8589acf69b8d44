"""Inputs and options of the jobs of tables, of their costs and of their provenance.

Commands name rows as bash expands them (`results/m/{a,b}/...`): a table of some hundred rows, spelt out, would be
longer than what Linux takes for a command.
"""

import functools
import hashlib
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from replaceme.config.reference import ReferenceConfig
from replaceme.config.result_paths import (
    CHECKPOINT,
    COST_JOBS,
    CUT,
    DIVERGENCE,
    EVALUATION,
    EXPORT,
    FIT,
    MODEL,
    MOST,
    OF_BASELINE,
    RESULTS,
    SPEED,
    TABLE,
    TOKENS,
    VERIFY,
    Names,
    at,
    fit_folder,
    row_folder,
)
from replaceme.config.schema import Config
from replaceme.config.tables import HEALED, PRODUCT, Row
from replaceme.core.files import write_json
from replaceme.planning.user_files import declared, stamps
from replaceme.workflow.fit_jobs import Files, FitJobs, listed

FORMATS = ("csv", "html", "md", "tex")


def braced(names: Sequence[str]) -> str:
    """Return several names as one word that bash expands, in order."""
    return names[0] if len(names) == 1 else f"{{{','.join(names)}}}"


def published_file(section: ReferenceConfig | None) -> list[str]:
    """Return the file of published values of a table or a figure, if it has one."""
    return [section.file] if section else []


def once(found: Iterable[str]) -> list[str]:
    """Return distinct items, in order."""
    return list(dict.fromkeys(found))


@dataclass(frozen=True, eq=False)
class TableJobs:
    """Inputs and options of the tables of a config, for the rules."""

    config: Config
    fits: FitJobs

    def files(self, name: str) -> list[str]:
        """Return a table in all formats, with its comparison with published values and its costs if it has any.

        Of a table without an evaluation, which is no file, the models.
        """
        table = self.config.tables[name]
        if not table.evaluation:
            return [f"{row_folder(row)}/{CHECKPOINT['record']}" for row in table.pruned] + self._exports([name])
        endings = [*(f".{one}" for one in FORMATS), ".svg"]
        endings += [".published.csv", ".published.html"] if table.reference else []
        endings += [".cost.csv", ".cost.html"] if self.config.cost is not None else []
        return [at(TABLE, Names(table=name)) + ending for ending in endings]

    def rows(self, tables: Iterable[str]) -> list[Row]:
        """Return the rows of tables without their baselines, each once."""
        return list(dict.fromkeys(row for name in tables for row in self.config.tables[name].pruned))

    def inputs(self, names: Names) -> Files:
        """Return all files that a table shows."""
        rows = self.rows([names.table])
        measured = self._measured([names.table])
        return {
            "measured": measured,
            "verified": once(at(VERIFY, row) for row in rows) if measured else [],
            "fits": once(at(FIT, row) for row in rows),
            "cuts": sorted({at(CUT, row) for row in rows}),
            "exports": self._exports([names.table]),
        }

    def options(self, names: Names) -> str:
        """Return the options of a table."""
        section = self.config.tables[names.table]
        baselines = [f"--baseline {folder}" for folder in self._baselines(names.table)]
        more = [] if section.speed else ["--no-speed"]
        more += ["--by"] if section.by else []
        more += [f"--exports {','.join(section.exports)}"] if section.exports else []
        more += ["--divergence"] if self.config.divergence_text(section) is not None else []
        words = [*self._braced_rows(names.table), *baselines, f"--evaluation {section.evaluation}", *more]
        return " ".join([*words, self.caption_option(names)])

    def caption_option(self, names: Names) -> str:
        """Return the option of a table's caption."""
        return f"--caption={shlex.quote(self.config.tables[names.table].caption)}"

    def reference_option(self, names: Names) -> str:
        """Return the option of the comparison of a table with published values."""
        return f"--reference {shlex.quote(self.config.tables[names.table].reference.model_dump_json())}"

    def published(self, names: Names) -> list[str | Path]:
        """Return the file of published values that a table is compared with."""
        return declared(published_file(self.config.tables[names.table].reference))

    def published_stamps(self, names: Names) -> list[str]:
        """Return size and time of the file of published values."""
        return stamps(published_file(self.config.tables[names.table].reference))

    def records(self, tables: Sequence[str]) -> Files:
        """Return the records of the sources of some tables."""
        rows = self.rows(tables)
        healed = [(row, self.config.healings[row.healing].text) for row in rows if row.healing]
        texts = {at(TOKENS, row) for row in rows} | {at(TOKENS, row, calibration=text) for row, text in healed}
        return {
            "models": sorted({at(MODEL, row) for row in rows}),
            "calibrations": sorted(texts),
            "measured": sorted(self._measured(tables)),
        }

    def records_of(self, names: Names) -> Files:
        """Return the records of one table."""
        return self.records([names.table])

    def records_options(self, tables: Sequence[str]) -> str:
        """Return the options that name the records of some tables; several tables may name one twice."""
        found = self.records(tables)
        options = [f"--{name} {shlex.join(found[name])}" for name in ("models", "calibrations") if found[name]]
        measured = [
            f"{folder}/{braced(kinds)}"
            for table in tables
            for folders, kinds in self._folders_and_kinds(table, self._braced_rows(table))
            for folder in folders
        ]
        return " ".join([*options, *(["--measured", *measured] if measured else [])])

    def records_options_of(self, names: Names) -> str:
        """Return the options that name the records of one table."""
        return self.records_options([names.table])

    def checkpoints(self, names: Names) -> list[str]:
        """Return the shortened models of a table, whose costs are added up.

        Of these nothing is declared: where a cost is missing, no job runs again.
        """
        return once(f"{fit_folder(row)}/{CHECKPOINT['record']}" for row in self.rows([names.table]))

    @functools.cache  # noqa: B019 (there is one of these in a process)
    def cost_jobs(self, table: str) -> dict[str, list[str]]:
        """Return the outputs of the jobs behind each row of a table."""
        rows = self.rows([table])
        return {fit_folder(row).removeprefix(f"{RESULTS}/"): self._jobs_behind(row) for row in rows}

    def write_cost_jobs(self, names: Names, dry: bool) -> str:
        """Write a file that lists the jobs behind each row, except in a dry run, and return its path."""
        path = at(COST_JOBS, names)
        if not dry:
            write_json(path, self.cost_jobs(names.table))
        return path

    def cost_jobs_hash(self, names: Names) -> str:
        """Return a hash of the list of jobs behind each row."""
        return hashlib.sha256(json.dumps(self.cost_jobs(names.table)).encode()).hexdigest()

    def _jobs_behind(self, row: Row) -> list[str]:
        """Return the outputs of the jobs that make a row, without checks and evaluations."""
        names, files = Names(row._asdict()), [at(MODEL, row), at(TOKENS, row)]
        files += [at(MOST, row)] if self.config.calibrations[row.calibration].automatic else []
        files += [path for one in self.fits.cut_evidence(names).values() for path in listed(one)]
        files.append(at(CUT, row))
        evidence = self.fits.fit_evidence(names)
        files += [path for one in evidence.values() for path in listed(one)]
        if "statistics" in evidence:
            files += self.fits.sums_behind(self.fits.sum_of(names))
        folder = fit_folder(row)
        return once([*files, folder, f"{folder}/model"])

    def _folders_and_kinds(self, table: str, rows: list[str]) -> list[tuple[list[str], list[str]]]:
        """Return the folders of the baselines, and `rows`, with the names of the files with their measurements."""
        section = self.config.tables[table]
        if not section.evaluation:
            return []
        kinds = [EVALUATION.format(evaluation=section.evaluation), *([SPEED] if section.speed else [])]
        divergent = self.config.divergence_text(section) is not None
        more = [DIVERGENCE.format(evaluation=section.evaluation)] if divergent else []
        return [(self._baselines(table), kinds), (rows, [*kinds, *more])]

    def _measured(self, tables: Sequence[str]) -> list[str]:
        """Return the measurements of the baselines and rows of tables."""
        return once(
            f"{folder}/{kind}"
            for table in tables
            for folders, kinds in self._folders_and_kinds(table, [*map(row_folder, self.config.tables[table].pruned)])
            for folder in folders
            for kind in kinds
        )

    def _exports(self, tables: Sequence[str]) -> list[str]:
        """Return the outcomes of other programs on the rows of tables."""
        sections = [self.config.tables[name] for name in tables]
        return once(
            f"{row_folder(row)}/{EXPORT.format(program=program)}"
            for section in sections
            for row in section.pruned
            for program in section.exports
        )

    def _baselines(self, table: str) -> list[str]:
        return [at(OF_BASELINE, Names(model=model)) for model in self.config.tables[table].named("models")]

    def _braced_rows(self, table: str) -> list[str]:
        """Return the folders of all rows but the baselines, fits before their healings, as words that bash expands."""
        section = self.config.tables[table]
        axes = [getattr(section, name) for name in PRODUCT]
        single = section.pruned[-len(section.rows) :] if section.rows else []
        words = [row_folder(row) for row in single]
        if all(axes):
            combined = f"{RESULTS}/{'/'.join(map(braced, axes))}"
            healed = f"{{,/{HEALED}/{braced(section.healings)}}}"
            words.insert(0, combined + (healed if section.healings else ""))
        return words
