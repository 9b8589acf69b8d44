"""Tables: numbers by hand, nothing filled in, same bits, clear errors, escaping."""

import json
import math
import re
import shutil

import pandas
import pytest
from given import cut_of

from replaceme.cli import main
from replaceme.config.fits import fit_config
from replaceme.config.tables import SPEED
from replaceme.core import uncertainty
from replaceme.core.errors import ReplaceMeError
from replaceme.reports import render, tables

GOOD, WORSE, MIDDLE = [1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]
HARDWARE = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 8e9, "gpus": [], "gpu_driver": None}


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def task(items, **more):
    value, stderr = uncertainty.mean(items)
    scored = {"metric": "acc", "fewshot": 0, "version": 1.0, "in_average": True, "documents": "abc", "n": len(items)}
    return scored | {"value": value, "stderr": stderr, "items": items} | more


def evaluation(folder, one, two, log_likelihoods, parameters=750):
    scored = {"micro_one": task(one), "micro_two": task(two), "micro_last": task(two, in_average=False)}
    average = uncertainty.average(
        [(scored[name]["value"], scored[name]["stderr"]) for name in ("micro_one", "micro_two")]
    )
    perplexity, stderr = uncertainty.perplexity(log_likelihoods)
    record = {
        "parameters": parameters,
        "file_bytes": 2 * parameters,
        "cache_bytes_per_token": 16 * parameters,
        "tasks": scored,
        "average": {"value": average[0], "stderr": average[1]},
        "perplexity": {
            "task": "micro_last",
            "metric": "perplexity",
            "value": perplexity,
            "stderr": stderr,
            "documents": "def",
            "items": log_likelihoods,
        },
    }
    put(folder / "evaluation/micro.json", record)


def speed(folder, rate=100.0, threads=2):
    rates = {name: {"median": rate, "interquartile_range": 1.0} for name in SPEED if name.endswith("per_s")}
    latency = {"latency_s": {"median": 25.6 / rate, "interquartile_range": 0.0}}
    lengths = {"batch_size": 1, "prompt_tokens": 256, "new_tokens": 16}
    where = {"dtype": "float32", "device": "cpu", "threads": threads, "hardware": HARDWARE}
    put(folder / "speed.json", {"peak_memory_bytes": 7 * 10**8} | latency | rates | lengths | where)


@pytest.fixture
def results(tmp_path):
    """A baseline, and one cut with UIDL and LS; returns (rows, baselines)."""
    baseline = tmp_path / "toy/baseline"
    evaluation(baseline, GOOD, GOOD, [-0.1, -0.1, -0.1], parameters=1000)
    speed(baseline)
    cut = tmp_path / "toy/cal/n2"
    put(cut / "cut.json", cut_of([[3, 5]], 8, metric="cosine", position="all").content)
    for fit, transform, items in (("uidl", "identity", WORSE), ("ls", "full", MIDDLE)):
        evaluation(cut / fit, items, GOOD, [-1.0, -2.0, -3.0] if fit == "uidl" else [-1.0, -1.0, -1.0])
        speed(cut / fit)
        put(cut / fit / "fit.json", {"transform": transform, "residual": 0.25 if fit == "ls" else 0.9})
    return [cut / "uidl", cut / "ls"], [baseline]


def test_outcomes_of_other_programs(results, tmp_path):
    rows, baselines = results
    for folder, outcome in zip(rows, ("passed", "failed"), strict=True):
        put(folder / "exports/llama.cpp.json", {"programs": {"llama.cpp": {"outcome": outcome}}})
    frame = tables.collect(rows, baselines, "micro", exports=["llama.cpp"])
    assert [None if pandas.isna(one) else one for one in frame["export_llama.cpp"]] == [None, "passed", "failed"]
    assert list(frame.columns)[-5:] == ["export_llama.cpp", *SPEED], "what depends on the machine is last"
    render.write(frame, tmp_path / "table", "")
    assert "| llama.cpp |" in (tmp_path / "table.md").read_text()
    with pytest.raises(ReplaceMeError, match=r"exports/vllm\.json is missing"):
        tables.collect(rows, baselines, "micro", exports=["vllm"])


def test_numbers_by_hand(results):
    frame = tables.collect(*results, "micro")
    assert list(frame["fit"]) == ["baseline", "uidl", "ls"]
    baseline, uidl, ls = (frame.iloc[i] for i in range(3))
    assert (ls["model"], ls["calibration"], ls["cut"], ls["removed"], ls["span"]) == ("toy", "cal", "n2", 2, "[3, 5)")
    assert baseline["compression"] == 0 and ls["compression"] == 0.25
    assert (baseline["average"], uidl["average"], ls["average"]) == (1.0, 0.625, 0.75)
    assert ls["average_stderr"] == pytest.approx(math.sqrt(1 / 3) / 2 / 2), "micro_two has none; two tasks"
    assert (baseline["rp"], uidl["rp"], ls["rp"]) == (100.0, 62.5, 75.0)
    assert uidl["perplexity"] == pytest.approx(math.exp(2)) and ls["residual"] == 0.25
    assert ls["micro_last"] == 1.0, "outside the average, but shown"


def test_divergences_where_they_are_measured(results, tmp_path):
    rows, baselines = results
    for folder, value in zip(rows, (0.5, 0.25), strict=True):
        texts = {"original": {"value": 8.0, "stderr": 0.5}, "model": {"value": 20 * value, "stderr": 1.0}}
        put(folder / "divergence/micro.json", {"kl": {"value": value, "stderr": value / 10}, "perplexity": texts})
    assert "kl" not in tables.collect(rows, baselines, "micro").columns
    frame = tables.collect(rows, baselines, "micro", divergence=True)
    assert list(frame["kl"].fillna(0)) == [0, 0.5, 0.25] and list(frame["kl_stderr"].dropna()) == [0.05, 0.025]
    assert list(frame["text_perplexity"]) == [8, 10, 5], "the original's beside them"
    render.write(frame, tmp_path / "table", "Toy")
    assert "| 0.250 ± 0.025 |" in (tmp_path / "table.md").read_text()
    (rows[1] / "divergence/micro.json").unlink()
    with pytest.raises(ReplaceMeError, match=r"ls: divergence/micro\.json is missing"):
        tables.collect(rows, baselines, "micro", divergence=True)


def test_paired_differences(results):
    ls = tables.collect(*results, "micro").iloc[2]
    # items differ by (0, 1, 0, 0) on the first task and nowhere on the second
    assert ls["average_vs_identity"] == 0.125
    assert ls["average_vs_identity_stderr"] == pytest.approx(math.sqrt(0.75 / 3) / 2 / 2)
    # log-likelihoods are better by 0, 1 and 2 nats
    assert ls["log_perplexity_vs_identity"] == pytest.approx(-1)
    assert ls["log_perplexity_vs_identity_stderr"] == pytest.approx(1 / math.sqrt(3))
    assert ls["log_perplexity_vs_identity"] == pytest.approx(math.log(ls["perplexity"]) - 2)


def test_a_healed_row_is_compared_with_what_was_not_healed(results, tmp_path):
    rows, baselines = results
    healed = [fit / "healed/full" for fit in rows]
    for folder, items in zip(healed, (MIDDLE, GOOD), strict=True):
        evaluation(folder, items, GOOD, [-0.5, -0.5, -0.5])
        speed(folder)
    assert "healing" not in tables.collect(rows, baselines, "micro").columns
    frame = tables.collect([rows[0], healed[0], rows[1], healed[1]], baselines, "micro")
    assert list(frame["fit"]) == ["baseline", "uidl", "uidl", "ls", "ls"]
    assert list(frame["healing"].fillna("")) == ["", "", "full", "", "full"]
    # paired with the blocks dropped and nothing trained, of which the first task has one of four
    assert list(frame["average_vs_identity"].fillna(0)) == [0, 0, 0.125, 0.125, 0.375]
    assert list(frame["residual"].fillna(0)) == [0, 0.9, 0, 0.25, 0], "the map's alone"
    render.write(frame, tmp_path / "table", "Toy")
    text = (tmp_path / "table.md").read_text()
    assert "| cut | fit      | healed by |" in text and text.count("| full ") == 6


def test_what_each_fit_is_found_by(results, tmp_path):
    rows, baselines = results
    given = ({"transform": "identity"}, {"objective": "kl", "placement": "down_proj"})
    for folder, options in zip(rows, given, strict=True):
        put(folder / "fit.json", {**options, "by": fit_config(**options).by})
    assert "by" not in tables.collect(rows, baselines, "micro").columns
    frame = tables.collect(rows, baselines, "micro", by=True)
    assert list(frame["by"].fillna("")) == ["", "nothing", "gradient"]
    render.write(frame, tmp_path / "table", "Toy")
    assert "| ls       | gradient | [3, 5)  |" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"placement": "block", "ridge": "auto"}, "closed form"),
        ({"objective": "cosine"}, "closed form, reweighted"),
        ({"objective": "cosine", "solver": "adam"}, "gradient"),
        ({"transform": "collapse"}, "nothing; weights added up"),
        ({"method": "slicegpt"}, "closed form, rotation"),
    ],
)
def test_what_finds_a_fit_follows_from_its_section(options, by):
    assert fit_config(**options).by == by


def test_missing_cells_stay_missing(results):
    rows, baselines = results
    frame = tables.collect(rows, baselines, "micro")
    for row, column in ((0, "span"), (0, "residual"), (0, "average_vs_identity"), (1, "average_vs_identity")):
        assert pandas.isna(frame.iloc[row][column])
    alone = tables.collect(rows[1:], baselines, "micro")
    assert alone["average_vs_identity"].isna().all(), "no identity fit in the table"


def test_a_method_that_removes_no_block_and_brings_code(results, tmp_path):
    rows, baselines = results
    report = json.loads((rows[1] / "fit.json").read_text())
    put(rows[1] / "fit.json", {**report, "method": "slicegpt", "own_code": True})
    frame = tables.collect(rows, baselines, "micro")
    assert frame["removed"].tolist()[2] == 0 and frame["span"].tolist()[2] == "none, narrower"
    assert frame["span"].tolist()[1] != "none, narrower" and frame["removed"].tolist()[1] > 0
    render.write(frame, tmp_path / "out", "")
    for suffix in (".md", ".html", ".tex"):
        text = (tmp_path / f"out{suffix}").read_text().replace("\\_", "_")
        assert "loaded with trust_remote_code: ls." in text


def test_code_that_one_row_of_a_fit_brings_is_said_of_that_row(results):
    """Where a cut of single attentions on one text is a cut of whole blocks on another."""
    rows, baselines = results
    other = rows[1].parents[2] / "other/n2"
    shutil.copytree(rows[1].parent, other)
    put(other / "ls/fit.json", {**json.loads((other / "ls/fit.json").read_text()), "own_code": True})
    assert tables.collect([*rows, other / "ls"], baselines, "micro").attrs["own_code"] == ["toy/other/n2/ls"]


def test_cost_is_last(results):
    frame = tables.collect(*results, "micro")
    assert tuple(frame.columns[-7:]) == (*tables.SIZE, tables.CACHE, *SPEED)
    assert list(frame["parameters"]) == [1000, 750, 750] and list(frame["compression"]) == [0, 0.25, 0.25]
    assert tables.task_columns(frame.columns) == ["micro_one", "micro_two", "micro_last"]
    assert list(frame["cache_bytes_per_token"]) == [16000, 12000, 12000]
    cost = render.tables(frame)[-1]
    shown = dict(zip([column.header for column in cost.columns], cost.cells[1], strict=True))
    assert (shown["cache B"], shown["latency ms"]) == ("12,000", "256")


def test_encoders_have_no_cache(results):
    rows, baselines = results
    for folder in (*rows, *baselines):
        record = json.loads((folder / "evaluation/micro.json").read_text())
        put(folder / "evaluation/micro.json", {**record, "cache_bytes_per_token": None})
    assert tables.CACHE not in tables.collect(rows, baselines, "micro")


def test_a_table_says_how_speeds_were_measured(results):
    """Once where all were measured alike, else with the rows of each."""
    rows, baselines = results
    alike = render._notes(tables.collect(rows, baselines, "micro"))
    assert "Speed: 1 x 256 tokens and 16 new ones, float32 on cpu, 2 threads; Some CPU, 2 cores, 8 GB." in alike
    speed(rows[1], threads=1)
    notes = [note for note in render._notes(tables.collect(rows, baselines, "micro")) if note.startswith("Speed")]
    assert [note.split(":")[0] for note in notes] == [
        "Speed of toy/baseline, toy/cal/n2/uidl",
        "Speed of toy/cal/n2/ls",
    ]


def test_a_table_says_which_times_are_of_kernels_alone(results):
    rows, baselines = results
    for folder in (*rows, *baselines):
        record = json.loads((folder / "speed.json").read_text())
        put(folder / "speed.json", record | {"clock": "kernels", "device": "cuda"})
    notes = render._notes(tables.collect(rows, baselines, "micro"))
    lengths = "1 x 256 tokens and 16 new ones by the time of the GPU's kernels alone"
    assert f"Speed: {lengths}, float32 on cuda, 2 threads; Some CPU, 2 cores, 8 GB." in notes


def test_without_speed_a_table_has_its_sizes_alone(results, tmp_path):
    rows, baselines = results
    measured = tables.collect(rows, baselines, "micro")
    for folder in rows + baselines:
        (folder / "speed.json").unlink()
    frame = tables.collect(rows, baselines, "micro", speed=False)
    pandas.testing.assert_frame_equal(frame, measured.drop(columns=list(SPEED)))
    render.write(frame, tmp_path / "table", "Toy")
    for suffix in (".md", ".html", ".tex"):
        text = (tmp_path / f"table{suffix}").read_text()
        assert "parameters" in text and "tok/s" not in text and "peak" not in text


def test_an_evaluation_without_sizes_is_named(results):
    rows, baselines = results
    path = rows[1] / "evaluation/micro.json"
    record = json.loads(path.read_text())
    del record["file_bytes"]
    put(path, record)
    with pytest.raises(
        ReplaceMeError, match=re.escape(f"{rows[1]}: its evaluation does not say 'file_bytes'; evaluate")
    ):
        tables.collect(rows, baselines, "micro")


def test_different_items_are_not_paired(results):
    rows, baselines = results
    path = rows[1] / "evaluation/micro.json"
    record = json.loads(path.read_text())
    record["tasks"]["micro_one"]["documents"] = "other"
    put(path, record)
    with pytest.raises(ReplaceMeError, match="micro_one was evaluated on different items"):
        tables.collect(rows, baselines, "micro")


@pytest.mark.parametrize("name", ["evaluation/micro.json", "speed.json", "fit.json"])
def test_missing_file_is_named(results, name):
    rows, baselines = results
    (rows[1] / name).unlink()
    with pytest.raises(ReplaceMeError, match=re.escape(f"{rows[1]}: {name} is missing")):
        tables.collect(rows, baselines, "micro")


def test_missing_baseline_is_named(results):
    with pytest.raises(ReplaceMeError, match="no baseline of model 'toy'"):
        tables.collect(results[0], [], "micro")


def test_csv_keeps_every_digit_and_empty_cells(results, tmp_path):
    frame = tables.collect(*results, "micro")
    render.write(frame, tmp_path / "out/table", "Toy")
    read = pandas.read_csv(tmp_path / "out/table.csv", float_precision="round_trip")
    for column in frame:
        for ours, theirs in zip(frame[column], read[column], strict=True):
            assert (pandas.isna(ours) and pandas.isna(theirs)) or ours == theirs, column
    header, baseline, *_ = (tmp_path / "out/table.csv").read_text().splitlines()
    assert dict(zip(header.split(","), baseline.split(","), strict=True))["residual"] == ""


def test_reruns_differ_in_cost_alone(results, tmp_path):
    rows, baselines = results
    render.write(tables.collect(rows, baselines, "micro"), tmp_path / "first", "Toy")
    render.write(tables.collect(rows, baselines, "micro"), tmp_path / "same", "Toy")
    speed(rows[1], rate=321.0)
    render.write(tables.collect(rows, baselines, "micro"), tmp_path / "later", "Toy")
    for suffix in ("csv", "md", "html", "tex"):
        first, same, later = ((tmp_path / f"{name}.{suffix}").read_text() for name in ("first", "same", "later"))
        assert first == same
        assert first != later
        kept = first.index("Cost") if suffix != "csv" else 0
        assert first[:kept] == later[:kept], "the other parts stay"
        cost = len(SPEED)
        if suffix == "csv":
            pairs = zip(first.splitlines(), later.splitlines(), strict=True)
            assert all(line.rsplit(",", cost)[0] == other.rsplit(",", cost)[0] for line, other in pairs)


def test_averages_keep_their_errors_where_a_terminal_is_too_narrow(results, tmp_path, monkeypatch):
    monkeypatch.setattr(render, "TERMINAL", 100)
    render.write(tables.collect(*results, "micro"), tmp_path / "table", "Toy")
    lines = (tmp_path / "table.md").read_text().splitlines()
    row = next(line for line in lines if "[3, 5)" in line and "| ls " in line)
    assert "75.0 ± 14.4 | +12.5 ± 12.5 |" in row and "| 2.72 |" in row


def test_markdown_is_aligned_and_fits_a_terminal(results, tmp_path):
    rows, baselines = results
    frame = tables.collect(rows, baselines, "micro")
    render.write(frame, tmp_path / "table", "Toy")
    text = (tmp_path / "table.md").read_text()
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        assert len({len(line) for line in block.splitlines()}) == 1
    row = next(line for line in text.splitlines() if "[3, 5)" in line and "| ls " in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "n2",
        "ls",
        "[3, 5)",
        "25.0",
        "75.0 ± 14.4",
        "+12.5 ± 12.5",
        "75.0",
        "2.72 ± 0.00",
        "-1.00 ± 0.58",
        "0.250",
    ]
    assert "- Model: toy." in text and "| model |" not in text, "what is the same in all rows is said once"
    assert "acc, 0-shot, n = 4, v1.0: micro_one, micro_two." in text
    assert re.search(r"\| +one \|", text), "the common prefix is dropped"


def test_wide_markdown_drops_standard_errors(results, tmp_path):
    rows, baselines = results
    for folder in [*rows, *baselines]:
        path = folder / "evaluation/micro.json"
        record = json.loads(path.read_text())
        record["tasks"] |= {f"micro_extra{i}": task(MIDDLE) for i in range(12)}
        put(path, record)
    render.write(tables.collect(rows, baselines, "micro"), tmp_path / "table", "Toy")
    lines = (tmp_path / "table.md").read_text().splitlines()
    header = next(line for line in lines if "extra11" in line)
    assert len(header) <= render.TERMINAL
    row = lines[lines.index(header) + 2]
    assert "±" not in row and "50.0" in row


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.5984, "1.60"),
        (20.94, "20.9"),
        (359.6, "360"),
        (1904.6, "1905"),
        (1.537e9, "1.54e+09"),
        (0.01234, "0.0123"),
        (0.0, "0.00000"),
    ],
)
def test_significant_digits(value, shown):
    row = pandas.Series({"perplexity": value})
    assert render._cell(render.Column("ppl", "perplexity", "significant"), row) == shown


def test_best_of_a_size_is_bold(results, tmp_path):
    render.write(tables.collect(*results, "micro"), tmp_path / "table", "Toy")
    page = (tmp_path / "table.html").read_text()
    assert re.search(r'<td class="best">75\.0 <span', page), "LS has the best average of its size"
    assert not re.search(r'<td class="best">62\.5 <span', page)
    assert not re.search(r'<td class="best">100\.0', page[: page.index("Tasks, %")]), "the baseline has no rival"
    assert r"\textbf{75.0 $\pm$ 14.4}" in (tmp_path / "table.tex").read_text()


def test_html_is_self_contained_and_escaped(results, tmp_path):
    render.write(tables.collect(*results, "micro"), tmp_path / "table", "A <b> & c")
    page = (tmp_path / "table.html").read_text()
    assert "A &lt;b&gt; &amp; c" in page and "<b>" not in page
    assert not re.search(r"https?://|<script|<link|@import|src=", page)
    assert "prefers-color-scheme: dark" in page and "position: sticky" in page


def test_latex_escaping(results, tmp_path):
    assert render.escape_latex(r"a_b & 5% #1 {x} ~ ^ \ $") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} \$"
    )
    assert render.escape_latex("1 ± 2 Δ") == r"1 $\pm$ 2 $\Delta$"
    render.write(tables.collect(*results, "micro"), tmp_path / "table", "50% of n_2")
    text = (tmp_path / "table.tex").read_text()
    assert r"\caption{50\% of n\_2 (Summary)}" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == text.count(r"\begin{tabular}") == 3
    for block in re.findall(r"\\toprule\n(.*?)\\bottomrule", text, flags=re.DOTALL):
        rows = [line for line in block.splitlines() if line.endswith(r"\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1


def test_a_second_perplexity_has_a_column_of_its_own(results, tmp_path):
    rows, baselines = results
    for folder in [*rows, *baselines]:
        path = folder / "evaluation/micro.json"
        record = json.loads(path.read_text())
        scored = task(GOOD, metric="word_perplexity", in_average=False)
        record["tasks"]["micro_text"] = scored | {"value": 33.125, "stderr": 2.0}
        put(path, record)
    frame = tables.collect(rows, baselines, "micro")
    assert frame["micro_text"].tolist() == [33.125] * 3
    path = next(path for path in render.write(frame, tmp_path / "t", "") if path.suffix == ".md")
    assert "text ppl" in path.read_text() and "33.1 ± 2.0" in path.read_text(), "shown as it is, not in percent"


def test_a_table_of_nothing_is_refused(tmp_path, capsys):
    assert main(["table", "--evaluation", "e", "--out", str(tmp_path / "t")]) == 1
    assert "nothing to show" in capsys.readouterr().err and not list(tmp_path.iterdir())
