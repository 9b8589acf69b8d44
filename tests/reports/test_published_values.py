"""Published values beside measured ones."""

import pandas
import pytest

from replaceme.config.reference import ReferenceConfig
from replaceme.config.tables import TableConfig
from replaceme.core.errors import ReplaceMeError
from replaceme.reports.published_values import check_reference, compare, notes, shown
from replaceme.reports.render import markdown, write_parts

PUBLISHED = "method,note,avg_acc,ppl\nbaseline,,0.70,3.11\nUIDL,,0.58,2216.96\nother,not ours,0.60,12.31\n"
ROWS = ["m", "m/c/n8/uidl", "m/c/n8/ls"]


@pytest.fixture
def published(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(PUBLISHED)
    return str(path)


@pytest.fixture
def table():
    rows = [("m", None, None, "baseline", 0.5, 0.01, 2.0), ("m", "c", "n8", "uidl", 0.25, 0.02, None)]
    columns = ["model", "calibration", "cut", "fit", "average", "average_stderr", "perplexity"]
    return pandas.DataFrame(rows, columns=columns)


def reference(file, **other):
    columns = {"avg_acc": "average * 100", "ppl": "perplexity"}
    return ReferenceConfig(**{"file": file, "columns": columns, "rows": ["m", "m/c/n8/uidl", None], **other})


def test_each_published_cell_gets_what_was_measured(published, table):
    found = compare(table, reference(published))
    assert found.frame["method"].tolist() == ["baseline", "UIDL", "other"]
    assert found.frame["avg_acc"].tolist()[:2] == [50.0, 25.0]
    assert found.frame["avg_acc_stderr"].tolist()[:2] == [1.0, 2.0]
    assert found.frame["avg_acc_difference"][0] == pytest.approx(50 - 0.70)
    assert found.frame["avg_acc"].isna().tolist() == [False, False, True]
    assert (found.run, found.cells) == (3, 6)


def test_published_speeds_need_measured_ones(published):
    given = {"evaluation": "e", "rows": ["m/c/n8/uidl"], "speed": False}
    speeds = reference(published, columns={"avg_acc": "average", "ppl": "decode_tokens_per_s"}, rows=["m"])
    TableConfig(**given, reference=reference(published))
    TableConfig(**given | {"speed": True}, reference=speeds)
    with pytest.raises(ValueError, match="the reference shows decode_tokens_per_s, which `speed: false` leaves out"):
        TableConfig(**given, reference=speeds)


def test_a_healed_row_by_its_name(published, table):
    healed = pandas.concat([table.assign(healing=None), table[1:].assign(healing="full", average=0.4)])
    found = compare(healed, reference(published, rows=["m", "m/c/n8/uidl", "m/c/n8/uidl/full"]))
    assert found.frame["avg_acc"].tolist() == [50.0, 25.0, 40.0]


def test_no_difference_to_other_models(published, table):
    found = compare(table, reference(published, same_models=False))
    assert not [name for name in found.frame.columns if name.endswith("_difference")]
    assert "only directions" in notes(found, reference(published, same_models=False))[0]


def test_a_published_row_may_hold_several_of_ours(published, table):
    by_column = [{"avg_acc": "m", "ppl": "m"}, {"avg_acc": "m/c/n8/uidl"}, None]
    found = compare(table, reference(published, rows=by_column))
    assert found.frame["ppl"].isna().tolist() == [False, True, True]


def test_cells_that_were_not_run_are_empty_and_counted(published, table):
    found = compare(table, reference(published))
    part = shown(found, reference(published), "Beside the published")
    text = markdown([part], "A caption.", notes(found, reference(published)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[:5] == ["A caption.", "", "**Beside the published**", "", "| method | note | avg acc | ppl |"]
    assert "| baseline | | 50 ± 1 (0.7) | 2 (3.11) |" in lines
    assert "| other | not ours | (0.6) | (12.31) |" in lines
    assert "- 3 of 6 cells run here, 3 empty." in lines


def test_all_formats_have_the_cells_and_the_notes(published, table, tmp_path):
    found = compare(table, reference(published))
    part = shown(found, reference(published), "Beside the published")
    paths = write_parts([part], found.frame, tmp_path / "t.published", "A caption.", ["A note."], "How to read.")
    assert [path.name for path in paths] == [f"t.published.{kind}" for kind in ("csv", "md", "html", "tex")]
    page, tex = paths[2].read_text(), paths[3].read_text()
    assert '50 <span class="error">± 1</span> (0.7)' in page and "<li>A note.</li>" in page and "How to read." in page
    assert r"50 $\pm$ 1 (0.7)" in tex and "% A note." in tex


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": ["m", None]}, r"has 3 rows, 2 are given under rows"),
        ({"rows": ["m", "m/c/n9/uidl", None]}, r"'m/c/n9/uidl' is no row of the table"),
        ({"columns": {"accuracy": "average"}}, r"no column 'accuracy'; it has method, note, avg_acc, ppl"),
        ({"columns": {"ppl": "perplexity * x"}}, r"'perplexity \* x' is no measure"),
        ({"file": "gone.csv"}, r"gone.csv: no such file"),
    ],
)
def test_what_does_not_belong_together_is_told(published, changed, message):
    with pytest.raises(ReplaceMeError, match=message):
        check_reference(reference(published).model_copy(update=changed), ROWS)


def test_what_belongs_together_passes(published):
    check_reference(reference(published), ROWS)


def test_a_measure_that_the_table_lacks(published, table):
    with pytest.raises(ReplaceMeError, match="the table measures no 'speed'"):
        compare(table, reference(published, columns={"ppl": "speed"}))


def test_a_row_that_the_table_lacks_is_told(published, table):
    with pytest.raises(ReplaceMeError, match="'m/c/n8/ls' is no row of the table; make the table again"):
        compare(table, reference(published, rows=["m", "m/c/n8/ls", None]))


def test_a_row_of_an_unknown_column_is_refused(published):
    with pytest.raises(ValueError, match="'speed', which is not under columns"):
        reference(published, rows=["m", {"speed": "m"}, None])
