"""The key `reference` of a table: published values that it is shown beside."""

from typing import Annotated

from pydantic import Field, model_validator

from replaceme.config.base import Strict

Row = Annotated[str, Field(min_length=1)]


class ReferenceConfig(Strict):
    """Published values, in their own layout, beside which a table is shown."""

    file: str = Field(description="CSV file with the published rows, the first columns of which name them.")
    columns: dict[str, str] = Field(
        min_length=1,
        description="Columns of numbers in that file, and the measure of the table each is compared with; "
        "`average * 100` for percent.",
    )
    rows: list[Row | dict[str, Row] | None] = Field(
        min_length=1,
        description="For each row of the file, in its order, the row of the table: a model (its baseline), "
        "`model/calibration/cut/fit` (and `/healing`), or by column where each is another row; null: not run here.",
    )
    same_models: bool = Field(
        True, description="The published values are of the same models, so that differences are meaningful."
    )

    @model_validator(mode="after")
    def _columns_exist(self) -> "ReferenceConfig":
        unknown = sorted({column for row in self.rows if isinstance(row, dict) for column in row} - set(self.columns))
        if unknown:
            raise ValueError(f"a row names column {unknown[0]!r}, which is not under columns")
        return self
