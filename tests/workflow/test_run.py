"""The whole workflow, once: the command, its outputs, its report, its rules, and the same steps without Snakemake."""

import html
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from replaceme.core.cut_record import Cut
from replaceme.core.files import read_json
from replaceme.models.checkpoints import load_record
from replaceme.transforms.transform import Transform
from replaceme.verification.verify import verify

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
ALL_JOBS = {
    "model": 1, "tokens": 1, "distances": 1, "candidates": 1, "cut": 1, "gram": 2, "sum": 1, "transform": 2, "merge": 2,
    "verify": 2, "evaluate": 2, "evaluate_baseline": 1, "speed": 2, "speed_baseline": 1, "table": 1, "figure_table": 1,
    "figure_distances": 1, "figure_cut": 1, "provenance": 1,
}  # fmt: skip
RESULTS = "results/tiny.v1"
FIT = f"{RESULTS}/plain/n1"


def test_jobs_of_a_fresh_project(project):
    assert project.jobs() == ALL_JOBS


def test_targets_of_included_files(project):
    """Plain `snakemake` makes what `default` names, a target its tables, from another file too; `--config` is last."""
    config = project.config(include=["more/quiz.yaml"], default=["main.1"])
    table = {**config["tables"]["main.1"], "cuts": ["n2"], "fits": ["uidl"]}
    more = {"cuts": {"n2": {"blocks": 2, "metric": "cosine"}}, "fits": {"uidl": config["fits"]["uidl"]}}
    more |= {"tables": {"quiz.2": table}, "targets": {"quizzes": ["quiz.2"]}}
    (project.folder / "more").mkdir()
    (project.folder / "more/quiz.yaml").write_text(yaml.safe_dump(more))
    assert project.jobs() == ALL_JOBS
    own = {"cut": 1, "transform": 1, "merge": 1, "verify": 1, "evaluate": 1, "speed": 1, "table": 1, "figure_table": 1}
    shared = {"model": 1, "tokens": 1, "distances": 1, "evaluate_baseline": 1, "speed_baseline": 1}
    both = project.jobs("quizzes", "--config", "tables={quiz.2: {fits: [uidl, ls]}}")
    assert both == {**own, **shared, "quizzes": 1, "gram": 2, "sum": 1} | dict.fromkeys(list(own)[1:-2], 2)
    (project.folder / "more/quiz.yaml").write_text(yaml.safe_dump({**more, "speed": {"repeats": 9}}))
    refused = project.snakemake("quizzes", "--dry-run")
    assert re.search("speed: .*quiz.yaml sets it for itself", refused.stdout + refused.stderr)


def test_a_run_makes_the_tables_and_figures(reference):
    for name in (
        *(f"results/tables/main.1.{kind}" for kind in ("csv", "md", "html", "tex", "svg")),
        f"{RESULTS}/plain/distances.svg",
        f"{RESULTS}/plain/distances.csv",
        f"{FIT}/cut.svg",
        *(f"{FIT}/{fit}/model/{file}" for fit in ("uidl", "ls") for file in ("model.safetensors", "replaceme.json")),
    ):
        assert (reference.folder / name).stat().st_size > 0, name
    rows = reference.table()
    assert [(row["model"], row["fit"]) for row in rows] == [("tiny.v1", fit) for fit in ("baseline", "uidl", "ls")]
    assert all(float(row["perplexity"]) > 1 for row in rows)
    for fit in ("uidl", "ls"):
        checks = json.loads((reference.folder / f"{FIT}/{fit}/verify.json").read_text())["checks"]
        assert all(check["outcome"] == "passed" for check in checks.values())
    logs = list((reference.folder / "results/logs").rglob("*.log"))
    assert len(logs) == sum(ALL_JOBS.values()) and not list((reference.folder / "results").rglob(".tmp-*"))


def test_no_job_of_a_run_tries_the_network(reference, by_hand):
    for project in (reference, by_hand):
        assert not project.attempts.exists(), project.attempts.read_text()


def test_a_second_run_does_nothing(completed):
    again = completed.snakemake()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr
    assert "Execute" not in again.stdout + again.stderr


def test_what_every_job_made_is_as_recorded_until_it_is_changed(completed):
    done = completed.replaceme("verify", "results")
    assert done.returncode == 0, done.stderr
    logs = list((completed.folder / "results/logs").rglob("*.log"))
    assert done.stdout.endswith(f"{len(logs)} steps)\n")
    path = next((completed.folder / "results").glob("*/plain/n1/gram/*/1-of-2.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    done = completed.replaceme("verify", "results/tables/main.1.csv", "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["versions"] == []
    assert {one["file"] for one in found["differences"]} == {str(path)}
    assert sorted(one["role"] for one in found["differences"]) == ["input of sum", "output of gram"]
    assert completed.replaceme("verify", "results/tiny.v1/baseline").returncode == 0


def test_report(completed):
    report = completed.snakemake("--report", "out.html", cores=None)  # as the Makefile does
    assert report.returncode == 0, report.stderr
    page = html.unescape((completed.folder / "out.html").read_text(encoding="utf-8"))
    for name in ("main.1.csv", "main.1.html", "main.1.svg", "distances.svg", "cut.svg"):
        assert name in page
    assert "Average accuracy and perplexity" in page and "results of several environments" in page
    assert "provenance.html" in page and "a linear map is fitted on a little text" in page
    # it opens with the first table and its figure
    assert "the summary of table main.1 and its figure" in page
    front = page.split('<div id=\\"front\\">')[1].split('<script id="results">')[0]
    assert "<h2>Summary</h2>" in front and "<h2>Tasks" not in front and "results['results/tables/main.1.svg']" in front
    assert not completed.attempts.exists()


def test_the_steps_without_snakemake(by_hand, reference):
    assert by_hand.table() == reference.table()
    assert all((by_hand.folder / name).is_file() for name in ("table.svg", "distances.svg", "cut.svg"))
    assert not by_hand.attempts.exists(), by_hand.attempts.read_text()


def test_a_fresh_process_checks_a_model_itself(by_hand):
    """It says what another process says, also of a folder with code of its own."""
    own = by_hand.folder / "own"
    transforms, _ = Transform.load_all(own / "transform.safetensors")
    found = verify(load_record(own / "model.json"), Cut.load(own / "cut.json"), transforms, own / "model")
    assert read_json(own / "verify.json")["checks"] == found["checks"]
    assert found["checks"]["logits"]["outcome"] == "passed"


def test_a_model_added_by_hand(completed):
    """A Llama of another size, with nothing but an edit of the config; one command makes its table."""
    config = completed.config()
    completed.add_model("models/tiny/second", hidden_size=24, num_hidden_layers=5)
    table = {**config["tables"]["main.1"], "models": ["second"], "fits": ["uidl"], "cuts": ["hand"]}
    completed.config(
        models={"second": {"source": "models/tiny/second"}},
        cuts={"hand": {"ratio": 0.3, "start": 2}},
        tables={"second": table},
    )
    done = completed.snakemake("results/tables/second.csv")
    assert done.returncode == 0, done.stderr
    rows = completed.table("second")
    assert [(row["fit"], row["span"]) for row in rows] == [("baseline", ""), ("uidl", "[2, 4)")]
    assert not completed.attempts.exists()


def test_a_table_beside_published_values_by_its_name(completed):
    """An edit of the config adds a comparison to a finished run, and nothing but the comparison is run."""
    (completed.folder / "published.csv").write_text("method,ours,note\nwhole,0.7,a\ncut,0.5,b\nother,0.6,c\n")
    table = completed.config()["tables"]["main.1"]
    model, calibration, cut, fit = (table[key][0] for key in ("models", "calibrations", "cuts", "fits"))
    rows = [model, f"{model}/{calibration}/{cut}/{fit}", None]
    reference = {"file": "published.csv", "columns": {"ours": "average"}, "rows": rows}
    completed.config(tables={"beside": {**table, "reference": reference}})
    done = completed.snakemake("beside")
    assert done.returncode == 0, done.stderr
    shown = (completed.folder / "results/tables/beside.published.md").read_text()
    assert "(0.7)" in shown and re.search(r"\| other +\| c +\| +\(0\.6\) \|", shown)
    assert "2 of 3 cells run here, 1 empty" in shown and "- Models: tiny.v1: models/tiny/first, files " in shown
    for kind in ("csv", "html", "tex"):
        assert "0.7" in (completed.folder / f"results/tables/beside.published.{kind}").read_text()
    assert not completed.attempts.exists()


def test_single_rows_of_tables(completed):
    """After all combinations, or alone; as rows of the table, not only as jobs."""
    table = completed.config()["tables"]["main.1"]
    row = "tiny.v1/plain/n1/ls"
    alone = {"rows": [row], "evaluation": table["evaluation"]}
    completed.config(tables={"mixed": {**table, "fits": ["uidl"], "rows": [row]}, "alone": alone})
    done = completed.snakemake("results/tables/mixed.csv", "results/tables/alone.csv")
    assert done.returncode == 0, done.stderr
    assert completed.job_stats(done.stdout + done.stderr) == {"table": 2}
    assert [one["fit"] for one in completed.table("mixed")] == ["baseline", "uidl", "ls"]
    assert [one["fit"] for one in completed.table("alone")] == ["baseline", "ls"]


def test_figures_and_costs_of_a_finished_run(completed):
    """Nothing runs again but what draws and adds up; the costs are those of the jobs that still had to run."""
    completed.config(
        fits={"ridge": {"ridge": 0.5}},
        cost={"country": "FRA"},
        tables={"more": {**completed.config()["tables"]["main.1"], "fits": ["ridge"]}},
        figures={"sizes": {"kind": "lines", "tables": ["main.1"], "lines": ["fit"], "caption": "What to see."}},
    )
    planned = completed.snakemake("--dry-run", "results/tables/more.cost.csv")
    assert planned.returncode == 0 and not (completed.folder / "results/cost").exists(), planned.stderr
    done = completed.snakemake("sizes", "results/tables/more.cost.csv", "results/tables/main.1.cost.md")
    assert done.returncode == 0, done.stderr
    assert completed.job_stats(done.stdout + done.stderr) == {
        "figure_declared": 1,
        "sizes": 1,
        "transform": 1,
        "merge": 1,
        "cost": 2,
    }
    drawn = (completed.folder / "results/figures/sizes.csv").read_text()
    assert drawn.startswith("measure,panel,line,x,value") and (completed.folder / "results/figures/sizes.svg").is_file()
    kept = [path.relative_to(completed.folder) for path in (completed.folder / "results/cost/tiny.v1").rglob("*.json")]
    assert sorted(map(str, kept)) == [f"results/cost/tiny.v1/plain/n1/{name}.json" for name in ("ridge", "ridge/model")]
    cost = json.loads((completed.folder / "results/cost/tiny.v1/plain/n1/ridge.json").read_text())
    assert cost["step"] == "fit" and cost["energy_kwh"] > 0 and cost["country"] == "FRA"
    # model, tokens, candidates, cut, two Grams and their sum ran before
    row = (completed.folder / "results/tables/more.cost.csv").read_text().splitlines()[1]
    assert row.startswith("tiny.v1,plain,n1,ridge,9,2,,")
    assert "ran while cost was not measured" in (completed.folder / "results/tables/main.1.cost.md").read_text()
    assert not completed.attempts.exists(), completed.attempts.read_text()


def test_the_snakefile_is_short():
    """That rules are linted and formatted is `make lint`, which `make test` runs too."""
    assert len((ROOT / "Snakefile").read_text().splitlines()) <= 41


def test_gpu_jobs_take_one_device_each_of_those_visible(project):
    project.config(device="auto")
    where = {"cores": "27", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}
    done = project.snakemake("--dry-run", "--printshellcmds", **where)
    assert done.returncode == 0, done.stderr
    commands = (done.stdout + done.stderr).splitlines()
    for step, (count, threads) in {"gram": (2, 1), "verify": (2, 4), "evaluate": (3, 4), "speed": (3, 27)}.items():
        found = [line for line in commands if f"python -m replaceme.workflow.gpu_lock 1 -- replaceme {step} " in line]
        assert len(found) == count and all(f" --threads {threads} " in line for line in found), step
    touched = project.snakemake("--touch", **where)  # no job runs, but the limits are printed
    assert re.search(r"Provided resources:.*\bgpu\W.*\b6\b", touched.stdout + touched.stderr)


@pytest.mark.parametrize(("unit", "gpus", "threads"), [("cache", 0, 1), ("flops", 0, 1), ("latency", 1, 27)])
def test_only_times_of_parts_take_the_machine(project, unit, gpus, threads):
    project.config(device="auto")
    target = f"results/tiny.v1/parts/{unit}.json"
    where = {"cores": "27", "CUDA_VISIBLE_DEVICES": "0,1"}
    done = project.snakemake("--dry-run", "--printshellcmds", target, **where)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    command = next(line for line in output.splitlines() if "-- replaceme parts " in line)
    assert f"gpu_lock {gpus} --" in command and f" --threads {threads} " in command


def test_jobs_of_a_model_that_is_spread_take_its_gpus(project):
    models = {"tiny.v1": {**project.config()["models"]["tiny.v1"], "gpus": 3}}
    project.config(device="auto", models=models)
    done = project.snakemake("--dry-run", "--printshellcmds", CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 0, done.stderr
    commands = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if "replaceme.workflow.gpu_lock 3 -- replaceme" in line
    ]
    steps = {line.split("-- replaceme ")[1].split()[0] for line in commands}
    assert steps == {"candidates", "distances", "evaluate", "fit", "gram", "speed"}
    assert all("--gpus=3" in line for line in commands)
    # which in float32 would need twice as many
    assert (done.stdout + done.stderr).count("gpu_lock 0 -- replaceme verify ") == 2
    few = project.snakemake("--dry-run", CUDA_VISIBLE_DEVICES="0,1")
    assert few.returncode != 0 and "models.tiny.v1.gpus: 3 asked for, 2 visible" in few.stdout + few.stderr
