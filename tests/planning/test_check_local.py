"""What local models and files cannot do is found before any job starts, every problem on its own line."""

import copy
import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import packers
import pytest

from replaceme.config.schema import load, parse
from replaceme.core.errors import ReplaceMeError
from replaceme.planning.check_local import check_inputs, sparse_calibrations
from replaceme.planning.job_resources import outline_for

ROOT = Path(__file__).resolve().parents[2]
TABLE = {"models": ["a"], "calibrations": ["micro"], "cuts": ["n2"], "fits": ["uidl", "ls"], "evaluation": "quick"}
BASE = {
    "models": {"a": {"source": "unset"}},
    "calibrations": {"micro": {"dataset": "micro", "tokens": 64}},
    "speed": {"prompt_tokens": 64},
    "cuts": {
        "n2": {"blocks": 2},
        "n9": {"blocks": 9},
        "late": {"blocks": 3, "start": 4},
        "most": {"ratio": 0.95},
        "kept": {"blocks": 2, "metric": "taylor", "search": "independent", "keep_first": 4, "keep_last": 1},
    },
    "fits": {"uidl": {"transform": "identity"}, "ls": {}},
    "evaluations": {"quick": {"tasks": {"piqa": {}}}},
    "tables": {"main": TABLE},
}


def config(source, table=None, **sections):
    raw = copy.deepcopy(BASE)
    raw["models"]["a"]["source"] = str(source)
    raw["tables"]["main"].update(table or {})
    for section, entries in sections.items():
        raw[section].update(entries)
    return parse(raw)


def test_a_good_config(llama, sharded):
    check_inputs(config(llama), "x")
    check_inputs(config(sharded), "x")


def dequantised(source, table=None):
    return config(source, table, models={"a": {"source": str(source), "dequantise": True}})


def test_a_quantised_model_is_checked_as_the_plain_one_that_it_stands_for(llama, tmp_path, refuses):
    packers.pack_checkpoint(llama, tmp_path / "packed", "gptq")
    with refuses("x: models.a: ", "config.json says gptq, 4 bits", "set `dequantise: true`"):
        check_inputs(config(tmp_path / "packed"), "x")
    found = dequantised(tmp_path / "packed")
    check_inputs(found, "x")
    outline = outline_for(found.models["a"], "none")
    assert (outline.num_blocks, outline.parameters) == (6, outline_for(config(llama).models["a"], "none").parameters)
    assert outline.file_bytes == 4 * outline.parameters
    with refuses("cuts.n9 on models.a"):
        check_inputs(dequantised(tmp_path / "packed", {"cuts": ["n9"]}), "x")
    with refuses("x: models.a: ", "config.json names no quantisation"):
        check_inputs(dequantised(llama), "x")


def test_a_gguf_file_is_not_read_at_every_start(tmp_path, refuses):
    found = dequantised(tmp_path / "a.gguf")
    with refuses("x: models.a: ", "no such file"):
        check_inputs(found, "x")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    check_inputs(found, "x")
    assert sparse_calibrations(found) == [] and outline_for(found.models["a"], "none") is None
    with refuses("x: models.a: ", "a GGUF file", "set `dequantise: true`"):
        check_inputs(config(tmp_path / "a.gguf"), "x")


def test_a_reference_that_does_not_belong_to_its_table(llama):
    paper = {"file": "resources/paper/table3.csv", "columns": {"ratio_25": "average"}, "rows": ["a", None]}
    check_inputs(config(llama, {"reference": paper}), "x")
    for change, line in [
        ({"rows": ["a/micro/n9/ls", None]}, "x: tables.main: reference: 'a/micro/n9/ls' is no row of the table"),
        ({"file": "gone.csv"}, "x: tables.main: gone.csv: no such file"),
    ]:
        with pytest.raises(ReplaceMeError, match=line):
            check_inputs(config(llama, {"reference": {**paper, **change}}), "x")


def with_figure(source, cost=None, **figure):
    """The config with one figure of its table."""
    raw = {**copy.deepcopy(BASE), "figures": {"f": {"tables": ["main"], **figure}}, "cost": cost}
    raw["models"]["a"]["source"] = str(source)
    raw["fits"]["auto"] = {"ridge": "auto"}
    raw["calibrations"]["micro"]["shards"] = 2
    return parse(raw)


def test_figures_that_can_be_made(llama):
    check_inputs(with_figure(llama, kind="lines", x="cut.blocks", measures=["piqa * 100", "perplexity"]), "x")
    check_inputs(with_figure(llama, kind="bars", measures=["seconds"], cost={}), "x")


PUBLISHED = {"file": "resources/paper/figure4.csv", "label": "method", "columns": {"average": "relative_time"}}


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (
            {"measures": ["boolq"]},
            r"x: figures.f.measures: 'boolq' is not measured by table 'main'; it has average, rp",
        ),
        ({"measures": ["seconds"]}, "x: figures.f.measures: costs are measured where the section `cost` is set"),
        ({"kind": "versus"}, "x: figures.f.measures: kl is not measured by table 'main'; set `divergence`"),
        ({"x": "fit.rank"}, "x: figures.f.x: fit 'ls' has no number under rank"),
        (
            {"kind": "bars", "measures": ["average"], "published": PUBLISHED},
            "x: figures.f.published: resources/paper/figure4.csv: no column 'relative_time'; it has method",
        ),
        ({"measures": ["average * much"]}, "x: figures.f.measures: 'average \\* much' is no measure"),
    ],
)
def test_figures_that_cannot_be_made(llama, figure, line):
    with pytest.raises(ReplaceMeError, match=line):
        check_inputs(with_figure(llama, **{"kind": "lines", **figure}), "x")


def test_costs_of_a_country_that_is_none(llama):
    pytest.importorskip("codecarbon")
    with pytest.raises(ReplaceMeError, match=r"x: cost\.country: 'XYZ' is no country"):
        check_inputs(with_figure(llama, kind="lines", cost={"country": "XYZ"}), "x")


def test_divergences_on_text_that_is_seen_or_is_none(llama):
    def measured(text, calibration="micro", **more):
        evaluations = {"quick": {"tasks": {"piqa": {}}, "divergence": text}}
        calibrations = {"mixed": {"mix": {"micro": 1, "last": 1}, "samples": 8}, "photos": {"images": "photos"}}
        calibrations["last"] = {"dataset": "micro", "tokens": 64, "seed": 9}
        check_inputs(
            config(llama, {"calibrations": [calibration]}, evaluations=evaluations, calibrations=calibrations), "x"
        )

    measured("last")
    for calibration, text, shared in (
        ("micro", "micro", "micro"),
        ("micro", "mixed", "micro"),
        ("mixed", "last", "last"),
    ):
        with pytest.raises(ReplaceMeError, match=rf"evaluations\.quick\.divergence: .* made with '{shared}'"):
            measured(text, calibration)
    with pytest.raises(ReplaceMeError, match=r"evaluations\.quick\.divergence: 'photos' is images"):
        measured("photos")
    with pytest.raises(
        ReplaceMeError, match=r"evaluations\.quick\.divergence: 'gone' is not defined under calibrations"
    ):
        measured("gone")


HEALING = {"train": "lora", "text": "text", "steps": 10, "learning_rate": 0.1}


def test_healings_that_cannot_be_trained(llama):
    def healed(text, table=None, **fits):
        raw = {**copy.deepcopy(BASE), "healings": {"lora": HEALING}, "tables": {"main": {**TABLE, **(table or {})}}}
        raw["models"]["a"]["source"] = str(llama)
        raw["calibrations"]["text"] = text
        raw["fits"].update(fits)
        raw["tables"]["main"]["healings"] = ["lora"]
        return parse(raw)

    good = {"dataset": "micro-training", "tokens": 64, "samples": 40}
    check_inputs(healed(good), "x")
    for text, line in [
        ({**good, "samples": 32}, "x: healings.lora on calibrations.text: 32 samples, 32 of them held out"),
        ({**good, "samples": "auto"}, "x: healings.lora on calibrations.text: samples auto is of what fits take"),
        ({**good, "tokens": 256}, "x: calibrations.text on models.a: .* sequences of 256 tokens"),
        ({**good, "dataset": "gone.jsonl"}, "x: calibrations.text: gone.jsonl: no such file"),
        ({"images": "generated", "samples": 40}, "x: healings.lora on calibrations.text: images, but"),
    ]:
        with pytest.raises(ReplaceMeError, match=line):
            check_inputs(healed(text), "x")
    with pytest.raises(ReplaceMeError, match=r"x: tables\.main: fit 'apart' makes layers of its own"):
        check_inputs(healed(good, {"fits": ["apart"]}, apart={"placement": "block"}), "x")


def test_hub_models_are_not_looked_at():
    check_inputs(config("owner/name"), "x")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("n9", "cannot remove 9 of 6 blocks"),
        ("late", "start 4 must lie between 1 and 3"),
        ("most", "ratio 0.95 is out of reach"),
        ("kept", "the first 4 and the last 1 stay; remove at most 1"),
    ],
)
def test_cuts_that_do_not_fit(llama, refuses, cut, message):
    with refuses(f"x: cuts.{cut} on models.a: ", message):
        check_inputs(config(llama, {"cuts": ["n2", cut]}), "x")


def test_what_no_table_uses_is_not_looked_at(llama):
    check_inputs(config(llama, models={"unused": {"source": "./none"}}), "x")


def test_a_method_that_a_model_is_not_for(llama, gemma, refuses):
    fits = {"slices": {"method": "slicegpt"}}
    check_inputs(config(llama, {"fits": ["slices"]}, fits=fits), "x")
    with refuses("x: fits.slices on models.a: ", "method slicegpt is not for this model"):
        check_inputs(config(gemma, {"fits": ["slices"]}, fits=fits), "x")


def test_of_single_rows_each_model_is_judged_by_its_own(make_llama, gemma, refuses):
    long = make_llama(max_position_embeddings=512)
    own = {
        "models": {"b": {"source": str(gemma)}},
        "calibrations": {"long": {"dataset": "micro", "tokens": 512}},
        "fits": {"slices": {"method": "slicegpt"}},
    }
    for other, problem in (
        ("micro/n2/ls", None),
        ("long/n2/ls", "calibrations.long on models.b: "),
        ("micro/n9/ls", "cuts.n9 on models.b: "),
        ("micro/n2/slices", "fits.slices on models.b: "),
    ):
        rows = ["a/long/n2/slices", f"b/{other}"]
        section = config(long, {**{key: [] for key in ("models", "calibrations", "cuts", "fits")}, "rows": rows}, **own)
        if problem is None:
            check_inputs(section, "x")
        else:
            with refuses(f"x: {problem}", lines=1):
                check_inputs(section, "x")


def olmo_like(folder, tmp_path):
    """A model's folder as that of an architecture into which no factor on the residual stream can be folded."""
    path = Path(shutil.copytree(folder, tmp_path / "olmo")) / "config.json"
    path.write_text(path.read_text().replace('"llama"', '"olmo2"'))
    return path.parent


def test_a_fit_that_cannot_be_folded(tmp_path, llama, refuses):
    fits = {"factor": {"transform": "scalar", "placement": "upstream"}}
    check_inputs(config(llama, {"fits": ["factor"]}, fits=fits), "x")
    with refuses("x: fits.factor on models.a: ", "placement upstream is not known"):
        check_inputs(config(olmo_like(llama, tmp_path), {"fits": ["uidl", "ls", "factor"]}, fits=fits), "x")


def test_missing_and_broken_models(tmp_path, llama, sharded, refuses):
    with refuses("x: models.a: none: no such folder"):
        check_inputs(config("./none"), "x")
    broken = shutil.copytree(sharded, tmp_path / "broken")
    next(broken.glob("*.safetensors")).unlink()
    with refuses("x: models.a: ", "missing shard"):
        check_inputs(config(broken), "x")
    with refuses("x: models.a: ", "a local folder has no revision"):
        check_inputs(config(llama, models={"a": {"source": str(llama), "revision": "main"}}), "x")


def test_models_that_are_no_language_models_or_of_which_transformers_reads_no_config(tmp_path, llama, refuses):
    source = shutil.copytree(llama, tmp_path / "other")
    given = json.loads((source / "config.json").read_text())
    for change, said in [
        ({"architectures": ["LlamaForRewardModel"]}, "neither a language model nor an encoder"),
        ({"is_encoder_decoder": True}, "no language model"),
        ({"max_position_embeddings": None}, "`max_position_embeddings` should be an integer"),
    ]:
        (source / "config.json").write_text(json.dumps(given | change))
        with refuses("x: models.a: ", said):
            check_inputs(config(source), "x")
    (source / "config.json").write_text(json.dumps(given | {"architectures": ["LlamaModel"]}))
    with refuses("x: tables.main: ", "an encoder of text, which no evaluation measures; use `evaluation: null`"):
        check_inputs(config(source), "x")


def test_missing_calibration_files(llama, refuses, tmp_path):
    calibrations = {"mine": {"dataset": str(tmp_path / "none.jsonl"), "tokens": 64}}
    calibrations["odd"] = {"dataset": str(tmp_path), "tokens": 64}
    with refuses("x: calibrations.mine: ", "none.jsonl: no such file"):
        check_inputs(config(llama, {"calibrations": ["mine"]}, calibrations=calibrations), "x")
    with refuses("x: calibrations.odd: "):
        check_inputs(config(llama, {"calibrations": ["odd"]}, calibrations=calibrations), "x")


def test_every_problem_has_a_line(tmp_path, refuses, gemma):
    truncated = shutil.copytree(gemma, tmp_path / "truncated")
    (truncated / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    section = config(
        gemma,
        {"models": ["a", "b"], "calibrations": ["mine"], "cuts": ["n9", "late"], "fits": ["slices"]},
        fits={"slices": {"method": "slicegpt"}},
        models={"b": {"source": str(truncated)}},
        calibrations={"mine": {"dataset": "none.txt", "tokens": 64}},
    )
    with refuses(
        "cuts.n9 on models.a", "cuts.late on models.a", "fits.slices on models.a", "models.b: ", "none.txt", lines=5
    ):
        check_inputs(section, "x")


def test_sequences_longer_than_the_model_takes(llama, refuses):
    with refuses("calibrations.micro on models.a: ", "sequences of 500 tokens, but the model takes 128"):
        check_inputs(config(llama, calibrations={"micro": {"dataset": "micro", "tokens": 500}}), "x")
    with refuses("speed on models.a: ", "the model takes 128"):
        check_inputs(config(llama, speed={"prompt_tokens": 200}), "x")


@pytest.mark.parametrize(("unit", "fits"), [("cache", True), ("prefill", True), ("latency", False)])
def test_a_unit_of_the_prompt_alone_needs_no_room_after_it(llama, refuses, unit, fits):
    """The model takes 128; where a table measures speeds, their new tokens count too."""
    sections = {"cuts": {"n": {"ratio": 0.3, "of": unit}}, "speed": {"prompt_tokens": 128}}
    with nullcontext() if fits else refuses("speed on models.a: ", "sequences of 160 tokens"):
        check_inputs(config(llama, {"cuts": ["n"], "speed": False}, **sections), "x")
    with refuses("speed on models.a: ", "sequences of 160 tokens"):
        check_inputs(config(llama, {"cuts": ["n"]}, **sections), "x")


def test_too_few_tokens_for_a_full_rank_are_told(llama):
    assert sparse_calibrations(config(llama)) == []
    few = {"micro": {"dataset": "micro", "samples": 2, "tokens": 4}}
    [line] = sparse_calibrations(config(llama, calibrations=few))
    assert "at most 8 tokens for a hidden size of 16" in line and "rank 8" in line


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_project_is_fine_without_a_network(path, monkeypatch):
    monkeypatch.chdir(ROOT)  # its paths count from there
    check_inputs(load(path), str(path))
