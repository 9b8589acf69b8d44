"""docs/config.md is the schema and nothing else."""

from pathlib import Path

import pytest

from replaceme.cli import main
from replaceme.config.calibrations import CalibrationConfig
from replaceme.config.cuts import CutConfig
from replaceme.config.docs import render
from replaceme.config.evaluations import TaskConfig
from replaceme.config.fits import METHODS
from replaceme.config.schema import Config
from replaceme.config.tables import TableConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_document_has_not_drifted():
    assert DOCUMENT.read_text(encoding="utf-8") == render(), "run `replaceme check --docs docs/config.md`"


@pytest.mark.parametrize("schema", [Config, CalibrationConfig, CutConfig, *METHODS.values(), TableConfig, TaskConfig])
def test_every_key_is_described(schema):
    rows = render().splitlines()
    for name, field in schema.model_fields.items():
        assert any(row.startswith(f"| `{name}` |") and row.endswith(f"| {field.description} |") for row in rows), name


@pytest.mark.parametrize(
    "row",
    [
        "| `seed` | integer | `0` |",
        "| `shards` | integer | `1` |",
        "| `ridge` | number \\| `auto` | `0.0` |",
        "| `in_average` | true/false | `true` |",
        "| `fewshot` | integer \\| null | `null` |",
        '| `caption` | text | `""` |',
        "| `source` | text | **required** |",
        "| `tables` | list of text | **required** |",
        "| `models` | named sections | **required** |",
        "| `speed` | section | `see below` |",
        "| `device` | `auto` \\| `cpu` \\| `cuda` | `auto` |",
    ],
)
def test_types_and_defaults_are_written_as_in_yaml(row):
    assert row in render()


def test_the_command_that_makes_it(tmp_path):
    assert main(["check", "--docs", str(tmp_path / "config.md")]) == 0
    assert (tmp_path / "config.md").read_text() == render()
