"""Inputs and options of jobs, as the rules get them, without Snakemake."""

import shlex
import subprocess

import pytest

from replaceme.config.result_paths import Names, at, benchmark_of, fit_folder, log_of, model_at, row_folder, row_of
from replaceme.config.schema import parse
from replaceme.config.tables import Row
from replaceme.core.errors import ReplaceMeError
from replaceme.planning.job_work import work_of
from replaceme.planning.outline import Outline
from replaceme.workflow.devices import Devices
from replaceme.workflow.figure_jobs import FigureJobs
from replaceme.workflow.fit_jobs import FitJobs, candidates_name, evidence_options
from replaceme.workflow.job_environment import shell_prefix
from replaceme.workflow.load_config import merged, typed
from replaceme.workflow.measure_jobs import MeasureJobs
from replaceme.workflow.model_jobs import ModelJobs
from replaceme.workflow.requests import Requests
from replaceme.workflow.table_jobs import TableJobs

CONFIG = {
    "device": "cpu",
    "models": {"a": {"source": "org/a", "gpus": 2}, "b": {"source": "org/b", "revision": "v1"}},
    "calibrations": {
        "text": {"dataset": "micro", "shards": 2},
        "more": {"dataset": "micro", "seed": 1},
        "both": {"mix": {"text": 0.25, "more": 0.75}, "samples": 8},
        "own": {"prompts": "text", "samples": 4},
        "enough": {"dataset": "micro", "samples": "auto", "most": 50, "tolerance": 0.1},
        "healed": {"dataset": "micro", "seed": 2},
    },
    "cuts": {
        "paper": {"blocks": 2, "metric": "cosine"},
        "fitted": {"blocks": 2},
        "hand": {"blocks": 2, "start": 1},
        "loss": {"blocks": 2, "metric": "loss"},
        "kl": {"blocks": 2, "metric": "kl"},
        "cached": {"ratio": 0.3, "of": "cache", "metric": "cosine"},
        "timed": {"ratio": 0.3, "of": "decode", "metric": "kl_without", "search": "sublayers"},
        "merged": {"blocks": 2, "metric": "output", "search": "merging"},
    },
    "fits": {
        "uidl": {"transform": "identity"},
        "ls": {},
        "auto": {"ridge": "auto"},
        "cosine": {"objective": "cosine", "fit_tokens": 64},
        "recycled": {"placement": "down_proj", "recycle": 0.5},
        "removed": {"placement": "down_proj", "recycle": 0.5, "recycle_from": "removed"},
        "sliced": {"method": "slicegpt"},
    },
    "healings": {"short": {"text": "healed", "train": "full", "learning_rate": 0.1, "steps": 3}},
    "evaluations": {"quiz": {"tasks": {"pick": {"fewshot": 2}}, "limit": 5, "divergence": "both"}},
    "tables": {
        "t": {
            "models": ["a", "b"],
            "calibrations": ["text"],
            "cuts": ["paper", "fitted"],
            "fits": ["uidl", "ls", "auto"],
            "healings": ["short"],
            "rows": ["a/text/hand/recycled"],
            "evaluation": "quiz",
            "caption": "It's 5%",
        },
        "made": {
            "models": ["a"], "calibrations": ["text"], "cuts": ["paper"], "fits": ["ls"], "evaluation": None,
        },
    },
    "figures": {
        "map": {"kind": "heatmap", "tables": ["t"], "distances": ["cka"]},
        "line": {"kind": "lines", "tables": ["t"], "x": "calibration.samples", "measures": ["average"]},
    },
    "targets": {"all_of_it": ["t", "map"]},
    "cost": {},
}  # fmt: skip


@pytest.fixture(scope="module")
def config():
    return parse(CONFIG)


@pytest.fixture(scope="module")
def fits(config):
    return FitJobs(config)


@pytest.fixture(scope="module")
def tables(config, fits):
    return TableJobs(config, fits)


@pytest.mark.parametrize("evaluation", ["quiz", None])
def test_programs_that_a_table_tries_its_models_with(evaluation):
    """Each on every row but the baselines; of a table that measures nothing they are made beside the models."""
    table = {
        **CONFIG["tables"]["made"],
        "evaluation": evaluation,
        "healings": ["short"],
        "exports": ["onnx", "llama.cpp"],
    }
    config = parse({**CONFIG, "tables": {"t": CONFIG["tables"]["t"], "made": table}})
    jobs, row = TableJobs(config, FitJobs(config)), "results/a/text/paper/ls"
    folders = (row, f"{row}/healed/short")
    expected = [f"{folder}/exports/{program}.json" for folder in folders for program in ("onnx", "llama.cpp")]
    assert jobs.inputs(Names(table="made"))["exports"] == expected
    assert (
        set(expected) <= set(jobs.files("made"))
        if evaluation is None
        else "--exports onnx,llama.cpp" in jobs.options(Names(table="made"))
    )
    with pytest.raises(ReplaceMeError, match="exports"):
        parse({**CONFIG, "tables": {**CONFIG["tables"], "made": {**table, "exports": ["onnx", "onnx"]}}})


def names(**given):
    return Names({"model": "a", "calibration": "text", "cut": "paper", **given})


def expanded(words):
    """Return some words as bash expands them."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\n' {words}"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("row", [Row("a", "text", "paper", "ls"), Row("a", "b.c", "d", "e", "short")])
def test_a_row_and_its_folder(row):
    folder = row_folder(row)
    assert row_of(folder) == row == row_of(f"/else/where/{folder}")
    assert folder.startswith(fit_folder(row)) and ("healed" in folder) == (row.healing is not None)


@pytest.mark.parametrize("folder", ["results/a", "a/b/c", "a/b/healed/c", "healed/c", ""])
def test_what_is_no_folder_of_a_row(folder):
    assert row_of(folder) is None


def test_logs_and_benchmarks_lie_at_the_path_of_the_output():
    assert log_of("results/{model}/model.json") == "results/logs/{model}/model.log"
    assert benchmark_of("results/{model}/v1.5") == "results/benchmarks/{model}/v1.5.tsv"
    assert log_of("results/a/fit.json", "merge") == "results/logs/a/merge.log"
    assert model_at("results/a/model.json") == "results/a/model.json"
    assert model_at("results/a/t/c/f/model/replaceme.json") == "results/a/t/c/f/model"


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("paper", {"distances": "results/a/text/distances.safetensors"}),
        ("fitted", {"candidates": "results/a/text/candidates/2-blocks-64-samples.json"}),
        ("hand", {}),
        ("cached", {"costs": "results/a/parts/cache.json", "distances": "results/a/text/distances.safetensors"}),
    ],
)
def test_what_a_cut_is_chosen_from(fits, cut, expected):
    assert fits.cut_evidence(names(cut=cut)) == expected


def test_cuts_that_differ_in_what_counts_share_no_candidates(config, fits):
    assert sorted(fits.candidates.values()) == ["fitted", "loss", "merged", "timed"], "and distances have none"
    by_time = Names(model="a", candidates=candidates_name(config.cuts["timed"]))
    assert "--ratio=0.3 --of=decode" in fits.candidate_options(by_time)
    assert fits.candidate_costs_option(by_time) == "--costs results/a/parts/decode.json"
    assert fits.candidate_costs(names(candidates=candidates_name(config.cuts["kl"]))) == {}
    of_merging = next(name for name in fits.candidates if "merging" in name)
    assert "--search=merging" in fits.candidate_options(Names(candidates=of_merging))


def test_metrics_of_one_measurement_share_their_candidates_whichever_comes_first(config):
    for cuts in (config.cuts, dict(reversed(config.cuts.items()))):
        fits = FitJobs(config.model_copy(update={"cuts": cuts}))
        shared = {candidates_name(cuts[metric]) for metric in ("loss", "kl")}
        assert len(shared) == 1
        assert fits.candidate_options(Names(candidates=shared.pop())).endswith("--blocks=2 --metric loss")


def test_what_fits_are_made_from(fits):
    gram = "results/a/text/paper/gram"
    evidence = {fit: fits.fit_evidence(names(fit=fit)) for fit in CONFIG["fits"]}
    assert evidence["uidl"] == {}
    assert set(evidence["sliced"]) == {"tokens"}
    assert evidence["ls"]["statistics"] == f"{gram}/mlp/sum-of-2.safetensors"
    assert evidence["auto"]["shards"] == [f"{gram}/mlp/{shard}-of-2.safetensors" for shard in (0, 1)]
    assert evidence["cosine"]["rows"] == "results/a/text/paper/rows/mlp/64"
    assert evidence["recycled"]["recycled"] == f"{gram}/down_proj-recycle-0.5/recycled-of-2.safetensors"
    words = shlex.split(evidence_options(evidence["auto"]))
    assert expanded(words[words.index("--shards") + 1]) == evidence["auto"]["shards"]


def test_recycled_neurons_are_chosen_from_sums_of_their_own(fits):
    of_kind = names(kind="down_proj-recycle-0.5", shards="2")
    assert fits.sum_before(of_kind) == "results/a/text/paper/gram/inputs/sum-of-2.safetensors"
    assert fits.recycled_neurons(names(kind="mlp", shards="2")) == {}
    assert fits.regression_options(names(kind="inputs")).endswith("--before")
    behind = fits.sums_behind(of_kind)
    assert len(behind) == len(set(behind)) == 7  # two sums of two shards each, and the neurons
    assert fits.rows_options(names(kind="mlp", fit_tokens="64", exact="-exact")) == " --fit-tokens 64 --state"
    assert fits.recycled_text(of_kind) == {}


def test_the_only_shard_of_a_text_is_its_sum(fits):
    """So nothing is added up, and no second file of its size is written."""
    of_kind = names(kind="down_proj-recycle-0.5", shards="1")
    assert fits.summed(of_kind) == "results/a/text/paper/gram/down_proj-recycle-0.5/0-of-1.safetensors"
    assert fits.sum_before(of_kind) == "results/a/text/paper/gram/inputs/0-of-1.safetensors"
    assert not [path for path in fits.sums_behind(of_kind) if "sum-of" in path]


def test_neurons_of_removed_blocks_are_chosen_from_plain_sums_and_the_text(fits):
    of_kind = names(kind="down_proj-recycle-0.5-removed", shards="2")
    assert fits.sum_before(of_kind) == "results/a/text/paper/gram/down_proj/sum-of-2.safetensors"
    assert fits.recycled_text_options(of_kind) == "--tokens results/a/text/tokens.safetensors"
    assert fits.regression_options(of_kind).endswith("--recycle-from=removed")
    assert fits.regression_options(names(kind="down_proj")) == "--placement=down_proj"
    assert len(set(fits.kinds)) == len(fits.kinds) and fits.kinds.count("down_proj") == 1


def test_a_command_names_the_rows_of_a_table(config, tables):
    words = shlex.split(tables.options(names(table="t")))
    assert words[-1] == "--caption=It's 5%"
    rows = expanded(" ".join(words[: words.index("--baseline")]))
    assert rows == [row_folder(row) for row in config.tables["t"].pruned]
    assert len(rows) == 2 * 2 * 3 * 2 + 1


def test_what_a_table_shows_and_was_made_from(tables):
    inputs = tables.inputs(names(table="t"))
    assert {len(inputs[name]) for name in ("verified", "fits")} == {13}
    assert len(inputs["measured"]) == 2 * (2 + 25) + 25  # evaluation and speed of baselines and rows, and divergences
    assert "results/a/text/paper/ls/divergence/quiz.json" in inputs["measured"]
    assert "--divergence" in shlex.split(tables.options(names(table="t")))
    records = tables.records(["t", "made"])
    assert "results/b/healed/tokens.safetensors" in records["calibrations"]  # what a healing trains on
    named = shlex.split(tables.records_options(["t"]).partition("--measured ")[2])
    assert sorted(expanded(" ".join(named))) == records["measured"]
    assert tables.files("made") == ["results/a/text/paper/ls/model/replaceme.json"]
    assert "results/tables/t.cost.csv" in tables.files("t")


def test_the_jobs_behind_a_row_are_found_once(tables):
    jobs = tables.cost_jobs("t")
    assert set(jobs["a/text/paper/uidl"]) == {
        "results/a/model.json",
        "results/a/text/tokens.safetensors",
        "results/a/text/distances.safetensors",
        "results/a/text/paper/cut.json",
        "results/a/text/paper/uidl",
        "results/a/text/paper/uidl/model",
    }
    assert all(len(found) == len(set(found)) for found in jobs.values())
    assert "results/a/text/hand/gram/inputs/1-of-2.safetensors" in jobs["a/text/hand/recycled"]


def test_figures_and_targets(config, tables):
    figures = FigureJobs(config, tables)
    assert dict(figures.targets())["all_of_it"] == [*tables.files("t"), "results/figures/map.svg"]
    assert figures.tables_behind(["line"]) == ["t"]
    assert figures.front() == [{"name": "t", "table": "t.html", "figure": "line.svg"}]
    beside = figures.files_beside(["t"])
    assert "results/a/text/paper/cut.svg" in beside and "results/a/text/hand/cut.svg" not in beside
    assert "results/a/text/paper/ls/healed/short/healing.svg" in beside
    assert figures.distances_options(names()) == "--representations"
    assert figures.distances_options(names(calibration="more")) == ""
    options = shlex.split(figures.options(Names(figure="line")))
    assert options[-1] == '{"text": 128}' and options[-4:-2] == ["--table", "results/tables/t.csv"][:2]
    assert "--distances" in shlex.split(figures.options(Names(figure="map")))


def test_models_and_texts(config):
    jobs = ModelJobs(config, gpu=1)
    assert jobs.gpus(names()) == 2 and jobs.device_options(names()) == "--gpus=2 --device cpu"
    assert jobs.revision_option(names(model="b")) == "--revision=v1"
    assert jobs.files(names()) == [] and jobs.text_files(names()) == []
    own = names(calibration="own")
    assert jobs.text_files(own) == ["results/a/own/generated.jsonl"] and jobs.text_stamps(own) == []
    assert "--dataset=results/a/own/generated.jsonl" in jobs.token_options(own)
    assert "--samples=4" in jobs.generate_options(own)
    both = names(calibration="both")
    assert jobs.mixed_tokens(both) == [f"results/a/{part}/tokens.safetensors" for part in ("text", "more")]
    assert jobs.mix_options(both) == "--weights 0.25 0.75 --samples=8"


@pytest.mark.parametrize(("unit", "options"), [
    ("cache", "--prompt-tokens=64"),
    ("prefill", "--prompt-tokens=64 --repeats=3 --gpus=2 --device cpu"),
    ("decode", "--prompt-tokens=64 --new-tokens=8 --repeats=3 --gpus=2 --device cpu"),
])  # fmt: skip
def test_costs_of_parts_depend_on_what_their_unit_does(unit, options):
    speed = {"prompt_tokens": 64, "new_tokens": 8, "repeats": 3}
    jobs = ModelJobs(parse({**CONFIG, "speed": speed}), gpu=1)
    assert jobs.parts_options(names(unit=unit)) == options


@pytest.mark.parametrize(("unit", "asked"), [("flops", False), ("latency", True)])
def test_costs_that_are_timed_depend_on_the_clock(unit, asked):
    jobs = ModelJobs(parse({**CONFIG, "device": "auto", "speed": {"clock": "kernels"}}), gpu=1)
    assert ("--clock=kernels" in jobs.parts_options(names(unit=unit))) is asked


def test_plain_weights_take_the_place_of_quantised_ones(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    models = {"a": {"source": str(tmp_path / "a.gguf"), "dequantise": True}}
    models["b"] = {"source": "org/b", "revision": "v1", "dequantise": True}
    jobs = ModelJobs(parse({**CONFIG, "models": {**models, "c": {"source": "org/c"}}}), gpu=0)
    assert jobs.quantised == ["a", "b"]
    plain = "results/a/dequantised"
    assert jobs.source(names()) == plain and jobs.files(names()) == [f"{plain}/replaceme.json"]
    assert jobs.file_stamps(names()) == [] and model_at(f"{plain}/replaceme.json") == plain
    assert jobs.given_files(names()) == [tmp_path / "a.gguf"] and "a.gguf 4 " in jobs.given_stamps(names())[0]
    assert (jobs.revision_option(names(model="b")), jobs.given_revision(names(model="b"))) == ("", "--revision=v1")
    assert jobs.given(names(model="b")) == "org/b" and jobs.source(names(model="c")) == "org/c"


def test_a_text_that_is_enough(config):
    """Its number is in no option; the widest placement that is fitted on it decides."""
    jobs, enough = ModelJobs(config, 0), names(calibration="enough")
    assert jobs.token_options(enough) == "--dataset=micro --samples=50"
    assert jobs.enough_options(enough) == "--tolerance=0.1 "
    wide = {**CONFIG["tables"]["t"], "calibrations": ["enough"], "fits": ["ls", "recycled"], "rows": []}
    raw = {**CONFIG, "tables": {"t": wide}, "figures": {}, "targets": {}}
    widened = parse(raw)
    assert ModelJobs(widened, 0).enough_options(enough) == "--tolerance=0.1 --placement=down_proj"
    tables = TableJobs(widened, FitJobs(widened))
    assert "results/a/enough/most.safetensors" in tables.cost_jobs("t")["a/enough/paper/ls"]
    assert "results/a/enough/enough.svg" in FigureJobs(widened, tables).files_beside(["t"])
    outline = Outline("org/a", {"vocab_size": 9, "dtype": "float32"}, 8, 64, 1e6, [100_000] * 8, 4e6)
    work = work_of("enough", widened, enough, outline)
    assert (work.tokens, work.width, work.groups) == (50 * 1024, 256, 3)


def test_measurements_and_healings(config):
    jobs = MeasureJobs(config)
    options = shlex.split(jobs.evaluation_options(Names(evaluation="quiz")))
    assert options == ["--task", 'pick={"fewshot":2}', "--limit=5"]
    assert jobs.evaluation_stamps(Names(evaluation="quiz")) == {}
    healing = names(fit="ls", healing="short")
    assert jobs.healing_tokens(healing) == "results/a/healed/tokens.safetensors"
    assert jobs.divergence_tokens(names(evaluation="quiz")) == "results/a/both/tokens.safetensors"
    assert jobs.seen_tokens(healing) == [f"results/a/{text}/tokens.safetensors" for text in ("text", "healed")]
    assert len(jobs.seen_tokens(names(fit="ls"))) == 1
    assert jobs.training_options(healing) == "--train=full --steps=3 --learning-rate=0.1" and not jobs.original(healing)
    taught = config.healings["short"].model_copy(update={"objective": "distillation"})
    jobs = MeasureJobs(config.model_copy(update={"healings": {"short": taught}}))
    assert jobs.original(healing) == ["results/a/model.json"]
    options = shlex.split(jobs.training_options(healing))
    assert "--objective=distillation" in options and options[-2:] == ["--original", "results/a/model.json"]


def test_a_model_that_is_not_here_is_said_once(fits):
    said = []
    asked = Requests(fits, "cpu", said.append).of("gram")
    job = names(kind="mlp", shard="0", shards="2")
    first, again = (asked["mem_mb"](job, attempt) for attempt in (1, 2))
    assert again == 2 * first > 0 and asked["runtime"](job, 1) > 0
    assert len(said) == 1 and "models.a: not here yet" in said[0]
    assert Requests(fits, "cpu", said.append).of("candidates")["runtime"](
        names(candidates=next(iter(fits.candidates))), 1
    )


def test_devices(config, monkeypatch):
    monkeypatch.setattr("replaceme.workflow.devices.visible", lambda: ["0"])
    assert Devices(config).gpu == 0  # device: cpu
    asking = parse({**CONFIG, "device": "auto"})
    assert Devices(asking).gpu == 1 and Devices(asking, granted=0).gpu == 0
    for names in (["0"], ["0", "00"]):  # one GPU, that takes one or two jobs at a time
        monkeypatch.setattr("replaceme.workflow.devices.visible", lambda names=names: names)
        with pytest.raises(ReplaceMeError, match=r"models\.a\.gpus: 2 asked for, 1 visible"):
            Devices(asking).check()
    monkeypatch.setattr("replaceme.workflow.devices.visible", lambda: ["0", "1"])
    Devices(asking).check()
    monkeypatch.setattr("replaceme.workflow.devices.visible", list)
    Devices(asking).check()
    with pytest.raises(ReplaceMeError, match="this machine shows no GPU"):
        Devices(parse({**CONFIG, "device": "cuda"})).check()


@pytest.mark.parametrize(("device", "gpus", "cores", "share"), [
    ("auto", 1, 64, 16), ("auto", 12, 160, 13), ("auto", 12, 8, 1), ("cpu", 12, 160, 40),
])  # fmt: skip
def test_as_many_jobs_with_several_cores_fit_as_there_are_gpus(monkeypatch, device, gpus, cores, share):
    monkeypatch.setattr("replaceme.workflow.devices.visible", lambda: list(map(str, range(gpus))))
    assert Devices(parse({**CONFIG, "device": device})).share(cores) == share


def test_values_of_the_command_line_have_the_types_of_yaml():
    assert typed({"a": {"b": "0.1", "c": ["true", "null", "1e-3"]}, "d": "two words"}) == {
        "a": {"b": 0.1, "c": [True, None, "1e-3"]},
        "d": "two words",
    }
    assert merged({"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}) == {"a": {"b": 3, "c": 2}, "d": [2]}
    assert merged("text", {"a": 1}) == {"a": 1}


def test_jobs_find_their_environment(config, tmp_path):
    """The prefix of their commands: Python first, but in a container; braces doubled, as Snakemake formats it."""
    folder = tmp_path / "b i'n"
    prefix = shell_prefix(folder / "python", config.cost).format()
    shown = 'echo "$PATH|$REPLACEME_RESULTS|$REPLACEME_COST"'
    run = {}
    for container in ("", "/image.sif"):
        environment = {"PATH": "/usr/bin:/bin", "APPTAINER_CONTAINER": container}
        done = subprocess.run(
            ["bash", "-c", prefix + shown], env=environment, capture_output=True, text=True, check=True
        )
        run[container] = done.stdout.strip().split("|")
    assert run[""][0] == f"{folder}:/usr/bin:/bin" and run["/image.sif"][0] == "/usr/bin:/bin"
    assert run[""][1] == "results" and '"results": "results"' in run[""][2]
    assert "REPLACEME_COST" not in shell_prefix("/bin/python", None)
    assert at("results/{table}", Names(table="t")) == "results/t"
