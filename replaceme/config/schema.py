"""The schema of config.yaml: every key, its type, range, unit and default, in one place.

The same models validate the workflow's config (all errors at once, one line each, before any job starts), give the
command line its options, and are the source of docs/config.md. Nothing here imports torch or Snakemake.
"""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from replaceme.config.base import NAME, Name, Strict, strings
from replaceme.config.calibrations import FORWARD, CalibrationConfig, GenerationConfig, ModelConfig
from replaceme.config.cost import CostConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.evaluations import KERNELS, WALL, EvaluationConfig, SpeedConfig, TaskConfig, ZeroShotConfig
from replaceme.config.figures import FigureConfig, dangling_figures
from replaceme.config.fits import AnyFit, FitConfig, widest
from replaceme.config.healings import HealingConfig, TrainingConfig
from replaceme.config.including import kind_of, read_config
from replaceme.config.names import name_problems
from replaceme.config.sources import made_of, source_problems
from replaceme.config.tables import SECTIONS, Row, TableConfig
from replaceme.config.targets import target_problems
from replaceme.core.errors import ReplaceMeError, printable
from replaceme.core.validation import validated

__all__ = [
    "FORWARD", "NAME", "CalibrationConfig", "Config", "CostConfig", "CutConfig", "EvaluationConfig",
    "FigureConfig", "FitConfig", "GenerationConfig", "HealingConfig", "ModelConfig", "Name", "SpeedConfig", "Strict",
    "TableConfig", "TaskConfig", "TrainingConfig", "ZeroShotConfig", "load", "parse", "read_config",
]  # fmt: skip


class Config(Strict):
    """The whole of config.yaml."""

    include: list[str] = Field(
        [],
        description="Other config files, relative to this one, whose named sections are added; of a name that both "
        "define this one's value counts. What they say of `default` is theirs.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Device of the computations.")
    models: dict[Name, ModelConfig] = Field(min_length=1, description="Models by name.")
    calibrations: dict[Name, CalibrationConfig] = Field(min_length=1, description="Calibrations by name.")
    cuts: dict[Name, CutConfig] = Field(min_length=1, description="Cuts by name.")
    fits: dict[Name, AnyFit] = Field(min_length=1, description="Fits by name.")
    healings: dict[Name, HealingConfig] = Field({}, description="Healings by name.")
    evaluations: dict[Name, EvaluationConfig] = Field({}, description="Evaluations by name.")
    speed: SpeedConfig = Field(SpeedConfig(), description="Speed measurement.")
    tables: dict[Name, TableConfig] = Field(min_length=1, description="Tables by name.")
    figures: dict[Name, FigureConfig] = Field({}, description="Figures by name.")
    cost: CostConfig | None = Field(None, description="Measurement of the run itself; null: none.")
    default: list[str] | None = Field(
        None,
        min_length=1,
        description="Tables and figures that `snakemake` makes without a target; null: all that this file defines.",
    )
    targets: dict[Name, Annotated[list[str], Field(min_length=1)]] = Field(
        {}, description="Tables and figures to be made together, by the name of a target: `snakemake <name>`."
    )

    @model_validator(mode="after")
    def _check_clock(self) -> Self:
        if self.speed.clock == KERNELS and self.device == "cpu":
            raise ValueError(f"speed.clock is {KERNELS}, which are a GPU's, and device is cpu; take `{WALL}`")
        return self

    @property
    def default_names(self) -> list[str]:
        """Tables and figures that are made without a target."""
        return [*self.tables, *self.figures] if self.default is None else self.default

    @property
    def passing(self) -> set[Row]:
        """Rows whose weights are removed after their last use: those of tables none of which keeps its models.

        The fit of a healed row is a row too.
        """
        kept = {True: set(), False: set()}
        for table in self.tables.values():
            kept[table.keep_models] |= {one for row in table.pruned for one in (row, row._replace(healing=None))}
        return kept[False] - kept[True]

    def observed(self, tables: Iterable[TableConfig], model: str | None = None) -> list[str]:
        """Return the calibrations that some tables, or their rows of one model, need for cuts, fits, healings and
        divergences, with the parts of mixes and prompts.
        """
        texts = [text for table in tables for text in (*self.seen(table, model), self.divergence_text(table))]
        return made_of(self.calibrations, sorted({text for text in texts if text is not None}))

    def divergence_text(self, table: TableConfig) -> str | None:
        """Return the calibration on which the divergences of a table are measured, if they are."""
        return self.evaluations[table.evaluation].divergence if table.evaluation else None

    def seen(self, table: TableConfig, model: str | None = None) -> list[str]:
        """Return the calibrations that the models of a table, or one of them, are made with, with the parts of mixes
        and prompts.
        """
        healed = [self.healings[one].text for one in table.named("healings", model)]
        return made_of(self.calibrations, [*table.named("calibrations", model), *healed])

    def criterion(self, model: str, calibration: str) -> FitConfig:
        """Return the placement whose fits need the most text among those of all tables on a calibration."""
        rows = {row for table in self.tables.values() for row in table.pruned}
        return widest(self.fits[row.fit] for row in sorted(rows, key=str) if row[:2] == (model, calibration))


# the keys of a table that hold names, and the sections that define those
REFERENCES = {
    "models": "models",
    "calibrations": "calibrations",
    "cuts": "cuts",
    "fits": "fits",
    "healings": "healings",
    "evaluation": "evaluations",
}
OPTIONAL = ("healings", "evaluations")  # sections that may be left out


def parse(raw: Any, origin: str = "config.yaml", problems: Sequence[str] = ()) -> Config:
    """Validate a config; raises ReplaceMeError with every error on a line of its own (`file: key: what; remedy`).

    `problems` are lines known already; what a config includes was added before, by `read_config`.
    """
    if not isinstance(raw, dict):
        raise ReplaceMeError(f"{origin}: expected a mapping of sections, found {kind_of(raw)}")
    return validated(Config, raw, origin, extra_checks=lambda raw: [*problems, *_dangling_and_reserved(raw)])


def _dangling_and_reserved(raw: dict) -> list[str]:
    """Return lines for reserved names, and for undefined names in tables; on plain data, to add to other errors."""
    lines = name_problems(raw)
    lines += source_problems(_section(raw, "calibrations"))
    if raw.get("include"):
        lines.append("include: only a file can include others; write it into the config file")
    for table_name in _section(raw, "tables"):
        table = _section(raw["tables"], table_name)
        for key, section in REFERENCES.items():
            names = [table.get(key)] if key == "evaluation" else table.get(key)
            # a missing section is an error of its own, but for those that may be left out
            checked = _section(raw, section) or (section in OPTIONAL and not raw.get(section))
            if isinstance(names, list) and checked:
                given = [name for name in names if isinstance(name, str)]
                lines += _dangling(f"tables.{printable(table_name)}.{key}", given, section, _section(raw, section))
        lines += _dangling_rows(raw, table, f"tables.{printable(table_name)}.rows")
        lines += _too_few_shards(raw, table, f"tables.{printable(table_name)}")
        lines += _not_as_stored(raw, table, f"tables.{printable(table_name)}")
    return lines + _texts(raw) + dangling_figures(raw) + target_problems(raw)


def _texts(raw: dict) -> list[str]:
    """Return lines for undefined texts of healings, and of divergences."""
    calibrations = _section(raw, "calibrations")
    texts = {
        f"{section}.{printable(name)}.{key}": _entry(raw, section, name).get(key)
        for section, key in (("healings", "text"), ("evaluations", "divergence"))
        for name in _section(raw, section)
    }
    given = {where: text for where, text in texts.items() if isinstance(text, str) and calibrations}
    return [line for where, text in given.items() for line in _dangling(where, [text], "calibrations", calibrations)]


def _dangling_rows(raw: dict, table: dict, where: str) -> list[str]:
    """Return lines for undefined names in single rows."""
    found = []
    for row in _single_rows(table):
        for name, section in zip(row, SECTIONS, strict=False):
            defined = _section(raw, section)
            if name not in defined and (defined or section in OPTIONAL):
                found += [f"{line} (in {'/'.join(row)!r})" for line in _dangling(where, [name], section, defined)]
    return found


def _single_rows(table: dict) -> list[list[str]]:
    """Return the parts of the single rows of a table; malformed rows are errors of their own."""
    parts = [row.split("/") for row in strings(table.get("rows"))]
    return [row for row in parts if len(row) in (4, 5) and all(row)]


def _fitted(raw: dict, table: dict) -> Iterable[tuple[tuple[str, dict], tuple[str, dict]]]:
    """Yield each fit and calibration of one row, with their names, without missing or empty ones."""
    pairs = product(*(strings(table.get(key)) for key in ("fits", "calibrations")))
    for fit, calibration in dict.fromkeys([*pairs, *((row[3], row[1]) for row in _single_rows(table))]):
        found = (fit, _entry(raw, "fits", fit)), (calibration, _entry(raw, "calibrations", calibration))
        if found[0][1] and found[1][1]:
            yield found


def _too_few_shards(raw: dict, table: dict, where: str) -> list[str]:
    """Return lines for calibrations of a table with too few shards for choosing a ridge by leaving one out."""
    return [
        f"{where}: {fit!r} chooses its ridge by leaving out shards; set `shards: 2` or more for calibration {name!r}"
        for (fit, section), (name, calibration) in _fitted(raw, table)
        if section.get("ridge") == "auto" and calibration.get("shards", 1) == 1
    ]


def _not_as_stored(raw: dict, table: dict, where: str) -> list[str]:
    """Return lines for calibrations of a table that keep a method from the whole model as it is stored."""
    keys = (("streaming", "always"), ("load_in_4bit", True))
    return [
        f"{where}: {fit!r} needs the whole model as it is stored; drop `{key}` of calibration {name!r}"
        for (fit, section), (name, calibration) in _fitted(raw, table)
        for key, value in keys
        if section.get("method", "replaceme") != "replaceme" and calibration.get(key) == value
    ]


def _entry(raw: dict, section: str, name: Any) -> dict:
    return _section(_section(raw, section), name) if isinstance(name, str) else {}


def _section(raw: dict, name: Any) -> dict:
    return raw[name] if isinstance(raw.get(name), dict) else {}


def _dangling(where: str, names: list[str], section: str, defined: dict) -> list[str]:
    known = ", ".join(printable(name) for name in defined) or "none"
    lines = [
        f"{where}: {name!r} is not defined under {section}; defined: {known}" for name in names if name not in defined
    ]
    return lines + [f"{where}: {name!r} is listed twice" for name in sorted({n for n in names if names.count(n) > 1})]


def load(path: str | Path) -> Config:
    """Read and validate a config file with all its includes."""
    found = read_config(path)
    return parse(found.sections, found.origin, found.problems)
