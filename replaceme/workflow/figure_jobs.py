"""Inputs and options of the jobs of figures, and the files that targets stand for."""

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replaceme.config.metrics import REPRESENTATIONS
from replaceme.config.result_paths import (
    CUT,
    CUT_FIGURE,
    DISTANCES,
    DISTANCES_FIGURE,
    ENOUGH_FIGURE,
    FIGURE,
    HEALING_FIGURE,
    TABLE,
    Names,
    at,
)
from replaceme.config.schema import Config
from replaceme.planning.user_files import declared, stamps
from replaceme.workflow.fit_jobs import Files
from replaceme.workflow.table_jobs import TableJobs, published_file


@dataclass(frozen=True)
class FigureJobs:
    """Inputs, options and files of the figures and targets of a config, for the rules."""

    config: Config
    tables: TableJobs

    def target_files(self, names: Iterable[str]) -> list[str]:
        """Return the files of tables and declared figures, by their names."""
        found: list[str] = []
        for name in names:
            is_table = name in self.config.tables
            found += self.tables.files(name) if is_table else [f"{at(FIGURE, Names(figure=name))}.svg"]
        return found

    def targets(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each name that can be a target, with its files: tables, declared figures and the section `targets`."""
        for name in (*self.config.tables, *self.config.figures):
            if name.isidentifier():
                yield name, self.target_files([name])
        for name, members in self.config.targets.items():
            yield name, self.target_files(members)

    def front(self) -> list[dict[str, str]]:
        """Return each measured table with its figure: the report opens with the first that it has.

        The figure is the first declared one of the table's rows, else the table's own.
        """
        drawn = {
            table: figure
            for figure, section in reversed(self.config.figures.items())
            if section.kind != "heatmap"
            for table in section.tables
        }
        measured = [name for name, section in self.config.tables.items() if section.evaluation]
        return [{"name": one, "table": f"{one}.html", "figure": f"{drawn.get(one, one)}.svg"} for one in measured]

    def files_beside(self, names: Iterable[str]) -> list[str]:
        """Return the figures of enough text, distances, chosen cuts and healings, of the tables behind these names."""
        rows = self.tables.rows(self.tables_behind(names))
        found = {at(DISTANCES_FIGURE, row) for row in rows}
        found |= {at(CUT_FIGURE, row) for row in rows if self.config.cuts[row.cut].start is None}
        found |= {at(ENOUGH_FIGURE, row) for row in rows if self.config.calibrations[row.calibration].automatic}
        return sorted(found | {at(HEALING_FIGURE, row) for row in rows if row.healing})

    def tables_behind(self, names: Iterable[str]) -> list[str]:
        """Return the tables among some names, and the tables of the declared figures among them."""
        names = set(names)
        drawn = [figure.tables for name, figure in self.config.figures.items() if name in names]
        wanted = names.union(*drawn)
        return [table for table in self.config.tables if table in wanted]

    def inputs(self, names: Names) -> Files:
        """Return all files that a declared figure shows."""
        figure = self.config.figures[names.figure]
        tables = [] if figure.kind == "heatmap" else [at(TABLE, Names(table=table)) for table in figure.tables]
        pairs = self._pairs(names.figure) if figure.matrices else {}
        return {
            "tables": [f"{table}.csv" for table in tables],
            "costs": [f"{table}.cost.csv" for table in tables if figure.needs_cost],
            "distances": list(pairs.values()),
            "cuts": [path for _, path in self._candidates(names.figure)],
            "published": declared(published_file(figure.published)),
        }

    def published_stamps(self, names: Names) -> list[str]:
        """Return size and time of a figure's file of published values."""
        return stamps(published_file(self.config.figures[names.figure].published))

    def options(self, names: Names) -> str:
        """Return the options of a declared figure."""
        figure, inputs = self.config.figures[names.figure], self.inputs(names)
        options = [f"--table {shlex.quote(path)}" for path in inputs["tables"]]
        options += [f"--cost {shlex.quote(path)}" for path in inputs["costs"]]
        if figure.matrices:
            pairs = self._pairs(names.figure).items()
            options += [f"--distances {shlex.quote(f'{pair}={path}')}" for pair, path in pairs]
        options += [f"--cut {shlex.quote(f'{pair}={path}')}" for pair, path in self._candidates(names.figure)]
        if figure.from_config is not None:
            options.append(f"--numbers {shlex.quote(json.dumps(self._numbers(names.figure)))}")
        return " ".join([shlex.quote(figure.model_dump_json(exclude_unset=True)), *options])

    def distances_options(self, names: Names) -> str:
        """Return the options for distances that are measured only if a cut or a figure needs them."""
        pair = f"{names.model}/{names.calibration}"
        shown = {
            name
            for figure, section in self.config.figures.items()
            if section.matrices and pair in self._pairs(figure)
            for name in section.matrices
        }
        wanted = any(cut.of_representations for cut in self.config.cuts.values())
        options = ["--representations"] if wanted or shown & set(REPRESENTATIONS) else []
        by_distance = any(cut.halves and not cut.needs_candidates for cut in self.config.cuts.values())
        return " ".join([*options, *(["--halves"] if by_distance else [])])

    def _pairs(self, figure: str) -> dict[str, str]:
        """Return the distances of every `model/calibration` in the rows of a figure's tables."""
        rows = self.tables.rows(self.config.figures[figure].tables)
        return dict(sorted((f"{row.model}/{row.calibration}", at(DISTANCES, row)) for row in rows))

    def _candidates(self, figure: str) -> list[tuple[str, str]]:
        """Return `model/calibration` and file of the cuts among whose candidates the rows of a figure are looked up."""
        rows = self.tables.rows(self.config.figures[figure].tables)
        cuts = self.config.figures[figure].candidates
        return sorted({(f"{row.model}/{row.calibration}", at(CUT, row, cut=cut)) for row in rows for cut in cuts})

    def _numbers(self, figure: str) -> dict[str, float]:
        """Return the number in the config that places each name of a section on the x axis."""
        section, key = self.config.figures[figure].from_config
        tables = [self.config.tables[table] for table in self.config.figures[figure].tables]
        entries = getattr(self.config, f"{section}s")
        names = sorted({one for table in tables for one in table.named(f"{section}s")})
        return {name: getattr(entries[name], key) for name in names}
