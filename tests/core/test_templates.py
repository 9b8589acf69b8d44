"""Text made of several columns: what a template may name, and that it reads nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replaceme.config.calibrations import CalibrationConfig
from replaceme.core.templates import filled, template_columns
from replaceme.core.validation import validated


def test_a_template():
    record = {"support": "w1", "a question": "{w2}", "n": 3, "nothing": None}
    assert filled("{support} {{x}} {a question}: {n}{nothing}", record, "x") == "w1 {x} {w2}: 3"
    assert filled("{nothing}\n{support}", record, "x") == "w1"


def test_a_template_reads_columns_and_nothing_else(refuses):
    """No attributes, no indices, no format specifications, whatever the values are."""
    for column in ("support.__class__", "support[0]", "0", "support!r", "support:>9"):
        with refuses(f"x: no column {column!r}; its columns: support"):
            filled("{" + column + "}", {"support": "w1"}, "x")
    assert filled("{support.__class__}", {"support.__class__": "w1", "support": "w2"}, "x") == "w1"
    with refuses("x: column 'answers' holds list, not text or a number"):
        filled("{answers}", {"answers": ["w1"]}, "x")


@pytest.mark.parametrize("template", ["", "plain", "{{}}", "{}", "{a} {", "a} {b}", "{a{b}}"])
def test_templates_that_mean_nothing(template, refuses):
    with refuses("calibrations: template: "):
        validated(CalibrationConfig, {"dataset": "x.jsonl", "template": template}, "calibrations")


@given(st.lists(st.text(st.characters(exclude_characters="{}"), min_size=1), min_size=1), st.text())
@settings(max_examples=50, deadline=None)
def test_a_template_of_any_columns(columns, between):
    escaped = between.replace("{", "{{").replace("}", "}}")
    template = escaped.join("{" + column + "}" for column in columns)
    assert template_columns(template) == columns
    record = {column: f"<{k}{{}}>" for k, column in enumerate(columns)}
    assert filled(template, record, "x") == between.join(record[column] for column in columns)
