"""The section `tables`."""

from collections.abc import Iterable
from itertools import product
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from replaceme.config.base import Strict
from replaceme.config.exports import PROGRAMS
from replaceme.config.reference import ReferenceConfig

PRODUCT = ("models", "calibrations", "cuts", "fits")
# the columns of a table that depend on the machine and the time; everything left of them is the same in every run
RATES = ("prefill_tokens_per_s", "decode_tokens_per_s")
SPEED = (*RATES, "latency_s", "peak_memory_bytes")
DIVERGENCE = ("kl", "text_perplexity")  # columns of evaluations with a `divergence`
CACHE = "cache_bytes_per_token"  # a column of language models alone
SECTIONS = (*PRODUCT, "healings")  # of the names in a row, in their order
# the columns of a table left of its tasks
KEYS = ("model", "calibration", "cut", "fit", "healing", "by", "removed", "span", "metric", "position", "compression")
BASELINE = "baseline"  # in place of a fit, and the name of the folder
HEALED = "healed"  # the folder of the healings of a fit


class Row(NamedTuple):
    """A row of a table other than a baseline, by the names of its sections; `None` without a healing."""

    model: str
    calibration: str
    cut: str
    fit: str
    healing: str | None = None

    def __str__(self) -> str:
        return "/".join(filter(None, self))


class TableConfig(Strict):
    """A result table: the baselines of its models, every combination of the rest, and single rows."""

    models: list[str] = Field([], description="Names under `models`.")
    calibrations: list[str] = Field([], description="Names under `calibrations`.")
    cuts: list[str] = Field([], description="Names under `cuts`.")
    fits: list[str] = Field([], description="Names under `fits`.")
    healings: list[str] = Field([], description="Names under `healings`; each row comes unhealed too.")
    rows: list[str] = Field(
        [],
        description="Single rows below all combinations of these, or in their place: `model/calibration/cut/fit`, or "
        "the same with `/healing`. Their models have a baseline too.",
    )
    evaluation: str | None = Field(description="Name under `evaluations`; null: the models are made, none is measured.")
    speed: bool = Field(True, description="Measure rates and memory of every row; false: the table has only its size.")
    keep_models: bool = Field(
        True,
        description="Keep the weights of every shortened model; false: they are removed when no job of the run has to "
        "read them any more, and made again for a later one that has to; record, config and card stay. A model that "
        "another table keeps is kept.",
    )
    by: bool = Field(False, description="Say what each fit is found by: nothing, a closed form, or gradients.")
    exports: list[Literal[PROGRAMS]] = Field(
        [],
        description="Programs that every shortened model is tried with; they have to be installed. Each loads the "
        "folder, and its likelihoods and greedy tokens are compared with those of transformers. The table has a column "
        "for each; one that fails ends nothing.",
    )
    caption: str = Field("", description="A sentence above the table.")
    reference: ReferenceConfig | None = Field(None, description="Published values to show it beside.")

    @model_validator(mode="after")
    def _reference_of_what_is_measured(self) -> "TableConfig":
        if self.reference is not None and self.evaluation is None:
            raise ValueError("a reference needs an evaluation to compare; drop one, or set the other")
        unmeasured = [] if self.speed or self.reference is None else speeds_of(self.reference.columns.values())
        if unmeasured:
            raise ValueError(
                f"the reference shows {unmeasured[0]}, which `speed: false` leaves out; drop one of the two"
            )
        return self

    @model_validator(mode="after")
    def _models_or_measurements(self) -> "TableConfig":
        if self.evaluation is None and not self.keep_models:
            raise ValueError("without an evaluation the models are all that is made; drop `keep_models: false`")
        return self

    @model_validator(mode="after")
    def _each_program_once(self) -> "TableConfig":
        twice = next((name for name in self.exports if self.exports.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"exports: {twice!r} is listed twice; drop one")
        return self

    @model_validator(mode="after")
    def _has_rows(self) -> "TableConfig":
        missing = [name for name in PRODUCT if not getattr(self, name)]
        if missing and not self.rows:
            raise ValueError(f"no {missing[0]}, and no single rows; name some under `{missing[0]}`, or give `rows`")
        if missing and (len(missing) < len(PRODUCT) or self.healings):
            given = next(name for name in SECTIONS if getattr(self, name))
            raise ValueError(f"no {missing[0]} to combine {given} with; name some, or drop {given}")
        for row in self.rows:
            if len(parts := row.split("/")) not in (4, 5) or not all(parts):
                raise ValueError(
                    f"rows: {row!r} is no row; write `model/calibration/cut/fit`, with `/healing` for a healed one"
                )
        names = self.row_names
        twice = next((one for one in self.rows if names.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"rows: {twice!r} is in the table already; drop it")
        return self

    @property
    def pruned(self) -> list[Row]:
        """Rows but the baselines: all combinations, each healing after its fit, then the single rows."""
        combined = product(*(getattr(self, name) for name in PRODUCT), [None, *self.healings])
        return [*(Row(*names) for names in combined), *(Row(*row.split("/")) for row in self.rows)]

    def named(self, section: str, model: str | None = None) -> list[str]:
        """Return the names of a section in its rows, or in those of one model, once each; those of single rows come
        last.
        """
        listed = getattr(self, section) if model is None else []
        own = [getattr(row, section.removesuffix("s")) for row in self.pruned if model in (None, row.model)]
        return list(dict.fromkeys(name for name in [*listed, *own] if name is not None))

    @property
    def row_names(self) -> list[str]:
        """Names of all rows: `model` for each baseline, `model/calibration/cut/fit`, and the same with `/healing`."""
        return [*self.named("models"), *map(str, self.pruned)]


def speeds_of(measures: Iterable[str]) -> list[str]:
    """Return the measures, perhaps with factors, that `speed` measures."""
    names = [measure.partition("*")[0].strip() for measure in measures]
    return [name for name in names if name in SPEED]
