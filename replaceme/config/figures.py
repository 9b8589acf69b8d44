"""The section `figures`: figures made from tables, each by its name."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from replaceme.config.base import Strict, strings
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.fits import METHODS
from replaceme.config.metrics import AFTER_FIT, REPRESENTATIONS, of_pairs
from replaceme.config.tables import CACHE, DIVERGENCE, SPEED, speeds_of

Name = Literal["model", "calibration", "cut", "fit", "metric", "position"]
Line = Literal[*get_args(Name), "by"]
Distance = Literal[*of_pairs(), *AFTER_FIT]
FORETOLD = tuple(name for name in AFTER_FIT if name != "residual")  # that is also a row's own
SIZES = ("removed", "compression")
SECTIONS = {"calibration": (CalibrationConfig,), "cut": (CutConfig,), "fit": tuple(METHODS.values())}
# what a table has beside its tasks, and what `replaceme cost` adds to it
MEASURES = (
    "average", "rp", "perplexity", *DIVERGENCE, "residual", "average_vs_identity",
    "log_perplexity_vs_identity", "parameters", "file_bytes", CACHE, *SPEED,
)  # fmt: skip
COST_MEASURES = ("seconds", "cpu_seconds", "memory_bytes", "gpu_memory_bytes", "energy_kwh", "emissions_kg")
# keys that say something about some kinds only
ONLY = {
    "x": ("lines", "versus"), "panels": ("lines", "scatter", "versus"), "distances": ("scatter", "heatmap"),
    "position": ("scatter", "heatmap"), "relative_to": ("lines", "bars"), "published": ("lines", "bars"),
    "lines": ("lines", "scatter", "versus", "bars"), "measures": ("lines", "scatter", "versus", "bars"),
    "candidates": ("scatter",),
}  # fmt: skip


class PublishedConfig(Strict):
    """Published values, drawn beside the measured ones."""

    file: str = Field(description="CSV file with the published values.")
    label: str = Field(description="Column of it that names a line or a bar.")
    x: str | None = Field(None, description="Column of it with the places of a line's points.")
    columns: dict[str, str] = Field(
        min_length=1, description="For each measure shown, its column there, or `column * 100`."
    )
    same_as: dict[str, str] = Field(
        {}, description="For labels there, the label here of what is the same, to give both one colour."
    )


class FigureConfig(Strict):
    """A figure from the rows of tables, results/figures/<name>.svg, and the numbers drawn, .csv."""

    kind: Literal["lines", "scatter", "versus", "bars", "heatmap"] = Field(
        description="lines: measures over a number; scatter: measures of each row over the distance across its cut; "
        "versus: measures of each row over another of its measures; bars: measures side by side; heatmap: distances of "
        "all pairs of blocks."
    )
    tables: list[str] = Field(
        min_length=1, description="Tables whose rows are shown (heatmap: whose models and calibrations)."
    )
    measures: list[str] = Field(
        ["average * 100", "perplexity"],
        min_length=1,
        description="Columns of the tables, tasks and costs (seconds, energy_kwh, emissions_kg ...) among them, a row "
        "of panels (bars: a group) for each; `average * 100` for percent.",
    )
    x: str = Field(
        "removed",
        description="Axis of lines: removed (blocks), compression, or a number of the config, such as "
        "`calibration.samples` or `fit.ridge`. Of versus: a column of the tables, kl if none is named.",
    )
    lines: list[Line] = Field(
        ["model", "fit"],
        min_length=1,
        description="Columns that distinguish lines, or bars; `by`, what fits are found by, of tables that say it.",
    )
    panels: Name | None = Field(None, description="Column with a panel for each of its values.")
    distances: list[Distance] = Field(
        ["cosine"],
        min_length=1,
        description="Distances across a cut, a column of panels for each; the residual of the row's fit; or what was "
        "measured of `candidates`.",
    )
    candidates: list[str] = Field(
        [],
        description="Cuts chosen among candidates of the rows' sizes, by kl or another metric after a fit: what they "
        "foretold of each row's blocks can then stand under distances.",
    )
    position: Literal["all", "last"] = Field("all", description="Tokens over which the distances were averaged.")
    relative_to: Literal["baseline", "least"] | None = Field(
        None,
        description="Show each measure but rp, which is relative already, as a multiple of its model's baseline, or of "
        "the least of its model's rows.",
    )
    published: PublishedConfig | None = Field(None, description="Published values beside them.")
    title: str = Field("", description="Title of the figure.")
    caption: str = Field("", description="Explanation for the reader, in the report.")

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> "FigureConfig":
        for key, kinds in ONLY.items():
            if key in self.model_fields_set and self.kind not in kinds:
                raise ValueError(f"{key} says nothing about {self.kind}; drop it")
        of_rows = [name for name in self.distances if name in AFTER_FIT]
        if self.kind == "heatmap" and of_rows:
            raise ValueError(f"the {of_rows[0]} is of a row, not of pairs of blocks; drop it from distances")
        foretold = [name for name in self.distances if name in FORETOLD]
        if foretold and not self.candidates:
            raise ValueError(f"{foretold[0]} was measured of candidates; name the cuts chosen among them, `candidates`")
        of_representations = [name for name in self.distances if name in REPRESENTATIONS]
        if of_representations and self.position != "all":
            raise ValueError(f"{of_representations[0]} averages over all tokens; drop `position: {self.position}`")
        return self

    @model_validator(mode="after")
    def _x_is_a_number(self) -> "FigureConfig":
        section, dot, key = self.x.partition(".")
        if (
            self.kind != "versus"
            and self.x not in SIZES
            and not (dot and section in SECTIONS and _is_number(section, key))
        ):
            known = f"{', '.join(SIZES)}, or a number under {', '.join(SECTIONS)} such as calibration.samples"
            raise ValueError(f"x {self.x!r} is no number of a row; take {known}")
        return self

    @model_validator(mode="after")
    def _published_belongs(self) -> "FigureConfig":
        if self.published is not None:
            unknown = [name for name in self.published.columns if name not in self.measures]
            if unknown:
                raise ValueError(f"published.columns: {unknown[0]!r} is not among measures")
            if self.panels is not None:
                raise ValueError("published values have no panels; drop one of the two")
            if (self.kind == "lines") != (self.published.x is not None):
                raise ValueError("published.x says where the points of lines lie: lines need it, bars have none")
        return self

    @property
    def from_config(self) -> tuple[str, str] | None:
        """Section and key of the config that x is, if it is one."""
        section, dot, key = self.x.partition(".")
        return (section, key) if dot and self.kind == "lines" else None

    @property
    def across(self) -> str | None:
        """Column that the measures of a versus are shown over."""
        if self.kind != "versus":
            return None
        return self.x if "x" in self.model_fields_set else "kl"

    @property
    def columns(self) -> list[str]:
        """Columns of the tables that it shows: measures without their factors, and what they are shown over."""
        shown = [] if self.kind == "heatmap" else [measure.partition("*")[0].strip() for measure in self.measures]
        return shown if self.across is None else [*shown, self.across]

    def is_relative(self, measure: str) -> bool:
        """Return whether a measure is shown as a multiple of another row's."""
        return self.relative_to is not None and measure != "rp"

    @property
    def needs_cost(self) -> bool:
        """True if it shows the cost of making the rows."""
        return any(column in COST_MEASURES for column in self.columns)

    @property
    def matrices(self) -> list[str]:
        """Distances that it reads from distances.safetensors."""
        return [name for name in self.distances if name not in AFTER_FIT] if self.kind in ("scatter", "heatmap") else []


def _is_number(section: str, key: str) -> bool:
    fields = [model.model_fields[key] for model in SECTIONS[section] if key in model.model_fields]
    kinds = [kind for field in fields for kind in (get_args(field.annotation) or (field.annotation,))]
    return int in kinds or float in kinds


def dangling_figures(raw: dict) -> list[str]:
    """Return lines for what is undefined, names that a table has, and measures that it leaves out; on plain data."""
    figures, tables = (raw[name] if isinstance(raw.get(name), dict) else {} for name in ("figures", "tables"))
    known = ", ".join(map(str, tables)) or "none"
    lines = []
    for name, figure in figures.items():
        section = figure if isinstance(figure, dict) else {}
        for table in strings(section.get("tables")):
            if table not in tables:
                lines.append(f"figures.{name}.tables: {table!r} is not defined under tables; defined: {known}")
                continue
            shown = tables[table] if isinstance(tables[table], dict) else {}
            if shown.get("speed") is False:
                lines += [
                    f"figures.{name}.measures: {one} is not measured for table {table!r}; set its `speed: true`"
                    for one in speeds_of([*strings(section.get("measures")), str(section.get("x"))])
                ]
            if "by" in strings(section.get("lines")) and shown.get("by") is not True:
                lines.append(f"figures.{name}.lines: table {table!r} does not say `by`; set its `by: true`")
        cuts = raw["cuts"] if isinstance(raw.get("cuts"), dict) else {}
        for cut in strings(section.get("candidates")):
            if cut not in cuts:
                lines.append(f"figures.{name}.candidates: {cut!r} is not defined under cuts")
            elif isinstance(cuts[cut], dict) and cuts[cut].get("metric") not in AFTER_FIT:
                chosen = f"one of {', '.join(AFTER_FIT)}"
                lines.append(f"figures.{name}.candidates: {cut!r} is not chosen by a metric after a fit, {chosen}")
        if name in tables:
            lines.append(f"figures.{name}: a table has this name; choose another")
    return lines
