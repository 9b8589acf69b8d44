"""Every mistake in a config is one line with its key path; nothing that is YAML can crash the reader."""

import copy
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replaceme.config.cuts import CutConfig
from replaceme.config.fits import METHODS, FitConfig
from replaceme.config.schema import Config, load, parse
from replaceme.config.transforms import STRUCTURES
from replaceme.core.errors import ReplaceMeError
from replaceme.core.validation import validated
from replaceme.core.yaml_file import read_yaml

GOOD = {
    "models": {"tiny": {"source": "models/tiny"}},
    "calibrations": {"c4": {"dataset": "allenai/c4", "samples": 16, "tokens": 32}},
    "cuts": {"n4": {"blocks": 4}, "quarter": {"ratio": 0.25, "metric": "cosine", "position": "last"}},
    "fits": {"uidl": {"transform": "identity"}, "ls": {"objective": "l2"}},
    "evaluations": {"quick": {"tasks": {"piqa": {"fewshot": 0}}}},
    "tables": {
        "main": {
            "models": ["tiny"], "calibrations": ["c4"], "cuts": ["n4", "quarter"], "fits": ["uidl", "ls"],
            "evaluation": "quick",
        }
    },
}  # fmt: skip


def changed(path, value):
    """GOOD with the value at a dotted path replaced; `...` deletes."""
    config = copy.deepcopy(GOOD)
    *parents, last = path.split("/")
    place = config
    for part in parents:
        place = place.setdefault(part, {})
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return config


def test_a_good_config():
    config = parse(GOOD)
    assert config.cuts["n4"].metric == "cosine_after_fit" and config.cuts["n4"].needs_candidates
    assert not config.cuts["quarter"].needs_candidates
    assert (config.cuts["n4"].size, config.cuts["quarter"].size) == ("4-blocks", "0.25-ratio")
    assert config.tables["main"].cuts == ["n4", "quarter"]
    assert parse(config.model_dump()) == config


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "path", [ROOT / "config.yaml", *sorted((ROOT / "config").glob("*.yaml"))], ids=lambda p: p.name
)
def test_the_shipped_configs_are_good(path):
    assert isinstance(load(path), Config)


def test_two_configs_show_every_structure_objective_and_solver():
    fits = [fit for name in ("fits", "baselines") for fit in load(ROOT / "config" / f"{name}.yaml").fits.values()]
    for name in ("transform", "objective", "solver"):
        offered = get_args(FitConfig.model_fields[name].annotation)
        assert {getattr(fit, name) for fit in fits} == set(offered)


def test_one_config_shows_every_method():
    fits = load(ROOT / "config" / "width.yaml").fits.values()
    assert {fit.method for fit in fits} == set(METHODS)


def test_sections_cannot_change():
    with pytest.raises(Exception, match="frozen"):
        parse(GOOD).device = "cpu"


HEALING = {"train": "lora", "text": "c4", "steps": 10, "learning_rate": 0.1}
BAD = {
    "unknown key": (("cuts/n4/bloks", 3), "cuts.n4.bloks: unknown key; did you mean 'blocks'?"),
    "unknown key, nothing close": (("fits/ls/zzz", 3), "zzz: unknown key; known keys of method replaceme: method, tr"),
    "unknown section": (("modles", {}), "modles: unknown key; did you mean 'models'?"),
    "unknown key in a task": (("evaluations/quick/tasks/piqa/shots", 1), "evaluations.quick.tasks.piqa.shots: unknown"),
    "unknown key in speed": (("speed/repeat", 1), "speed.repeat: unknown key; did you mean 'repeats'?"),
    "missing section": (("fits", ...), "fits: missing; Fits by name."),
    "missing key": (("models/tiny/source", ...), "models.tiny.source: missing; Folder of a safetensors checkpoint"),
    "empty section": (("models", {}), "models: Dictionary should have at least 1 item"),
    "section without content": (("models/tiny", None), "models.tiny: "),
    "no tasks": (("evaluations/quick/tasks", {}), "evaluations.quick: give either tasks"),
    "below range": (("calibrations/c4/samples", 0), "calibrations.c4.samples: Input should be greater than or"),
    "above range": (("calibrations/c4/shards", 10_001), "calibrations.c4.shards: Input should be less than or"),
    "one token": (("calibrations/c4/tokens", 1), "calibrations.c4.tokens: "),
    "ratio 0": (("cuts/quarter/ratio", 0.0), "cuts.quarter.ratio: Input should be greater than 0 (found 0.0)"),
    "ratio 1": (("cuts/quarter/ratio", 1), "cuts.quarter.ratio: Input should be less than 1"),
    "negative ridge": (("fits/ls/ridge", -1.0), "fits.ls.ridge: a number of at least 0, or auto, is needed, found"),
    "infinite ridge": (("fits/ls/ridge", float("inf")), "fits.ls.ridge: a number of at least 0, or auto, is needed"),
    "ridge not a number": (("fits/ls/ridge_relative", float("nan")), "fits.ls.ridge_relative: "),
    "tolerance of a number": (("calibrations/c4/tolerance", 0.1), "calibrations.c4: tolerance says when samples"),
    "text for a number": (("calibrations/c4/samples", "many"), "calibrations.c4.samples: Input should be a valid int"),
    "number in quotes": (("calibrations/c4/samples", "16"), "calibrations.c4.samples: Input should be a valid int"),
    "yes for a number": (("cuts/n4/blocks", True), "cuts.n4.blocks: Input should be a valid integer (found True)"),
    "fraction": (("cuts/n4/blocks", 2.5), "cuts.n4.blocks: Input should be a valid integer"),
    "number for text": (("models/tiny/revision", 1234567), "models.tiny.revision: Input should be a valid string"),
    "unknown choice": (("cuts/n4/metric", "cosin"), "cuts.n4.metric: Input should be 'cosine', 'angular'"),
    "unknown objective": (("fits/ls/objective", "l1"), "fits.ls.objective: Input should be 'l2', 'cosine', 'cosine_"),
    "unknown device": (("device", "gpu"), "device: Input should be 'auto', 'cpu' or 'cuda' (found 'gpu')"),
    "blocks and ratio": (("cuts/n4/ratio", 0.5), "cuts.n4: give either blocks or ratio"),
    "neither": (("cuts/n4/blocks", None), "cuts.n4: give either blocks or ratio"),
    "start 0": (("cuts/n4/start", 0), "cuts.n4: start 0 leaves no carrier: block 0 stays, so start at 1 or later"),
    "start -1": (("cuts/n4/start", -1), "cuts.n4: start -1 leaves no carrier"),
    "post-fit at the last token": (("cuts/n4/position", "last"), "cuts.n4: metric cosine_after_fit averages over all"),
    "by hand and by metric": (
        ("cuts/n4", {"blocks": 4, "start": 2, "metric": "cosine"}), "cuts.n4: start places the cut by hand, nothing is"
    ),
    "by hand, on samples": (("cuts/n4", {"blocks": 4, "start": 2, "samples": 8}), "cuts.n4: start places the cut by"),
    "samples of a distance": (
        ("cuts/n4", {"blocks": 4, "metric": "cosine", "samples": 8}), "cuts.n4: metric cosine is of the whole"
    ),
    "identity with a ridge": (("fits/uidl/ridge", 1.0), "fits.uidl: transform identity takes no ridge; drop it"),
    "true for a ridge": (("fits/ls/ridge", True), "fits.ls.ridge: a number of at least 0, or auto, is needed, found"),
    "misspelt auto": (("fits/ls/ridge", "autom"), "fits.ls.ridge: a number of at least 0, or auto, is needed, found"),
    "auto with one shard": (("fits/ls/ridge", "auto"), "tables.main: 'ls' chooses its ridge by leaving out shards"),
    "low rank without rank": (("fits/ls/transform", "low_rank"), "fits.ls: transform low_rank needs rank"),
    "sparse without l1": (("fits/ls/transform", "sparse"), "fits.ls: transform sparse needs l1"),
    "l1 of 1": (("fits/ls", {"transform": "sparse", "l1": 1.0}), "fits.ls.l1: Input should be less than 1"),
    "rank of a full T": (("fits/ls/rank", 3), "fits.ls: transform full takes no rank; drop it"),
    "orthogonal with a ridge": (("fits/ls", {"transform": "orthogonal", "towards": "identity"}),
                                "fits.ls: transform orthogonal takes no towards; drop it"),
    "identity with a placement": (("fits/uidl/placement", "block"), "fits.uidl: transform identity takes no placement"),
    "cosine beside the MLP": (("fits/ls", {"objective": "cosine", "placement": "block"}),
                              "fits.ls: a fit over rows by solver auto is of placement mlp or down_proj; change"),
    "hadamard with a rank": (("fits/ls", {"transform": "hadamard", "rank": 2}), "hadamard takes no rank; drop it"),
    "scalar in place of the down projection": (("fits/ls", {"transform": "scalar", "placement": "down_proj"}),
                                               "fits.ls: placement down_proj fits a full T; drop transform"),
    "a full T upstream": (("fits/ls/placement", "upstream"), "fits.ls: placement upstream takes one factor, transform"),
    "magnitudes of the MLP": (("fits/ls/transform", "magnitude"), "of the residual stream; set `placement: upstream`"),
    "a patch upstream": (("fits/ls", {"transform": "hadamard_magnitude", "placement": "upstream"}),
                         "fits.ls: placement upstream takes one factor"),
    "a patch of the MLP": (("fits/ls/transform", "hadamard_magnitude"), "set `placement: block`"),
    "magnitudes, weighted": (("fits/ls", {"transform": "magnitude", "placement": "block",
                                          "weighting": "inverse_energy"}),
                             "fits.ls: transform magnitude takes no weighting; drop it"),
    "magnitude with a ridge": (("fits/ls", {"transform": "magnitude", "placement": "block", "ridge": 1.0}),
                               "fits.ls: transform magnitude takes no ridge; drop it"),
    "rank of a cosine fit": (("fits/ls", {"objective": "cosine", "transform": "low_rank", "rank": 2}),
                             "fits.ls: objective cosine fits a full T; drop transform and ridge"),
    "adam of a diagonal": (("fits/ls", {"solver": "adam", "transform": "diagonal"}), "solver adam fits a full T"),
    "adam with a ridge": (("fits/ls", {"solver": "adam", "ridge_relative": 0.1}), "adam takes no ridge_relative"),
    "adam with iterations": (("fits/ls", {"solver": "adam", "iterations": 5}), "solver adam takes no iterations; drop"),
    "unknown method": (("fits/ls", {"method": "svd"}), "fits.ls.method: Input should be 'replaceme', 'svd_llm', "),
    "method with a ridge": (("fits/ls", {"method": "svd_llm", "ridge": 1.0}),
                            "fits.ls.ridge: unknown key; known keys of method svd_llm: method, estimation"),
    "steps without a training": (("fits/ls", {"method": "flattengpt", "kl_steps": 9}),
                                 "fits.ls: objective l2 takes no kl_steps; drop it"),
    "method with a placement": (("fits/ls", {"method": "slicegpt", "placement": "block"}),
                                "fits.ls.placement: unknown key; known keys of method slicegpt: method, estimation"),
    "trained method with an estimation": (("fits/ls", {"method": "llm_streamline", "estimation": "sequential"}),
                                          "fits.ls.estimation: unknown key; known keys of method llm_streamline: "),
    "epochs of least squares": (("fits/ls/epochs", 5), "fits.ls: objective l2 takes no epochs; drop it"),
    "rows of least squares": (("fits/ls/fit_tokens", 500), "fits.ls: objective l2 takes no fit_tokens; drop it"),
    "batches of lbfgs": (("fits/ls", {"solver": "lbfgs", "batch_tokens": 5}), "solver lbfgs takes no batch_tokens"),
    "masks of reweighting": (("fits/ls", {"objective": "cosine", "mask_ratio": 0.5}), "auto takes no mask_ratio; drop"),
    "l1 of a line search": (("fits/ls", {"solver": "nlcg", "l1_alpha": 0.1}), "solver nlcg takes no l1_alpha; drop it"),
    "l2 of reweighting": (("fits/ls", {"objective": "cosine_exact", "l2_alpha": 0.1}), "solver auto takes no l2_alpha"),
    "everything masked": (("fits/ls", {"solver": "adam", "mask_ratio": 1.0}), "fits.ls.mask_ratio: Input should"),
    "no learning rate": (("fits/ls", {"solver": "adam", "learning_rate": 0.0}), "ls.learning_rate: Input should be"),
    "unknown solver": (("fits/ls/solver", "sgd"), "fits.ls.solver: Input should be 'auto', 'adam'"),
    "perplexity of no task": (("evaluations/quick/perplexity", "lambada"), "perplexity names 'lambada', which is not"),
    "dangling model": (("tables/main/models", ["tiny", "big"]), "'big' is not defined under models; defined: tiny"),
    "dangling cut": (("tables/main/cuts", ["n5"]), "tables.main.cuts: 'n5' is not defined under cuts; defined: n4, qu"),
    "dangling evaluation": (("tables/main/evaluation", "slow"), "tables.main.evaluation: 'slow' is not defined under "
                            "evaluations; defined: quick"),
    "dangling healing": (("tables/main/healings", ["lora"]), "tables.main.healings: 'lora' is not defined under "
                         "healings; defined: none"),
    "dangling text": (("healings/lora", {**HEALING, "text": "c5"}), "healings.lora.text: 'c5' is not defined under "
                      "calibrations; defined: c4"),
    "a healing without steps": (("healings/lora", {"train": "lora", "text": "c4", "learning_rate": 1.0}),
                                "healings.lora.steps: missing; Steps of the optimiser"),
    "a rank of all weights": (("healings/full", {**HEALING, "train": "full", "lora_rank": 8}),
                              "healings.full: train full takes no lora_rank; drop it"),
    "listed twice": (("tables/main/fits", ["ls", "ls"]), "tables.main.fits: 'ls' is listed twice"),
    "empty list": (("tables/main/fits", []), "tables.main: no fits, and no single rows; name some under `fits`"),
    "a row too short": (("tables/main/rows", ["tiny/c4/n4"]), "tables.main: rows: 'tiny/c4/n4' is no row; write `mod"),
    "a row without a name": (("tables/main/rows", ["tiny//n4/ls"]), "tables.main: rows: 'tiny//n4/ls' is no row"),
    "a row that is there": (("tables/main/rows", ["tiny/c4/n4/ls"]), "rows: 'tiny/c4/n4/ls' is in the table already"),
    "a dangling row": (("tables/main/rows", ["tiny/c4/n5/ls"]), "tables.main.rows: 'n5' is not defined under cuts; "
                       "defined: n4, quarter (in 'tiny/c4/n5/ls')"),
    "a row not healed": (("tables/main/rows", ["tiny/c4/n4/ls/lora"]), "rows: 'lora' is not defined under healings"),
    "method of another's": (("fits/ls/network", "mlp"), "network: unknown key; known keys of method replaceme: "),
    "pruner with epochs": (("fits/ls", {"method": "llm_pruner", "epochs": 2}), "fits.ls.epochs: unknown key; known"),
    "reserved model": (("models/tables", {"source": "x"}), "models.tables: this name is reserved; choose another"),
    "reserved calibration": (("calibrations/baseline", {"dataset": "micro"}), "calibrations.baseline: this name is"),
    "reserved cut": (("cuts/candidates", {"blocks": 1}), "cuts.candidates: this name is reserved"),
    "reserved fit": (("fits/gram", {}), "fits.gram: this name is reserved"),
}  # fmt: skip


def test_a_clock_of_kernels_needs_a_gpu(refuses):
    timed = changed("speed/clock", "kernels")
    assert parse(timed).speed.clock == "kernels"
    with refuses("speed.clock is kernels, which are a GPU's, and device is cpu; take `wall`"):
        parse({**timed, "device": "cpu"})


@pytest.mark.parametrize("case", BAD)
def test_one_line_for_each_mistake(case, refuses):
    (path, value), message = BAD[case]
    with refuses("my.yaml: ", message):
        parse(changed(path, value), "my.yaml")


def test_single_rows_stand_below_the_combinations_or_alone():
    """Their models have baselines, and all that asks what a table names knows them."""
    lora = {**HEALING, "steps": 5}
    config = changed("healings/lora", lora)
    config["models"]["big"] = {"source": "owner/big"}
    config["calibrations"]["other"] = {"dataset": "micro"}
    config["tables"]["main"] |= {"cuts": ["n4"], "fits": ["ls"], "rows": ["big/other/quarter/uidl/lora"]}
    table = parse(config).tables["main"]
    expected = ["tiny", "big", "tiny/c4/n4/ls", "big/other/quarter/uidl/lora"]
    assert table.row_names == expected
    assert table.named("cuts") == ["n4", "quarter"] and table.named("healings") == ["lora"]
    assert [row.healing for row in table.pruned] == [None, "lora"]
    config["tables"]["main"] = {"rows": expected[2:], "evaluation": "quick"}
    alone = parse(config)
    assert alone.tables["main"].row_names == expected
    assert set(alone.observed(alone.tables.values())) == {"c4", "other"}


def test_single_rows_do_not_mend_half_a_product(refuses):
    config = changed("tables/main/rows", ["tiny/c4/n4/uidl"])
    del config["tables"]["main"]["cuts"]
    with refuses("tables.main: no cuts to combine models with; name some, or drop models"):
        parse(config)


def test_a_single_row_is_checked_as_any_other(refuses):
    config = changed("tables/main", {"rows": ["tiny/c4/n4/ls"], "evaluation": "quick"})
    config["fits"]["ls"] = {"ridge": "auto"}
    with refuses("tables.main: 'ls' chooses its ridge by leaving out shards", "for calibration 'c4'"):
        parse(config)


@pytest.mark.parametrize(("key", "value"), [("streaming", "always"), ("load_in_4bit", True)])
def test_a_method_needs_the_model_as_it_is_stored(key, value, refuses):
    config = changed(f"calibrations/c4/{key}", value)
    parse(config)
    config["fits"]["ls"] = {"method": "slicegpt"}
    with refuses(f"tables.main: 'ls' needs the whole model as it is stored; drop `{key}` of calibration 'c4'"):
        parse(config)


@pytest.mark.parametrize("name", ["a:b", "..", ".", "../up", ".hidden", "", "a b", "-x", "a\\b", "a\n", "é", 4, None])
@pytest.mark.parametrize("section", ["models", "cuts", "tables"])
def test_names_are_plain_folder_names(section, name, refuses):
    config = changed("device", "cpu")
    config[section] = {**config[section], name: next(iter(config[section].values()))}
    with refuses(f"my.yaml: {section}."):
        parse(config, "my.yaml")


def test_slashes_in_names():
    config = changed("device", "cpu")
    config["fits"]["a/b"] = {}
    with pytest.raises(ReplaceMeError, match=r"fits\.a/b: not a usable name"):
        parse(config)


def test_all_mistakes_are_reported_at_once(refuses):
    config = changed("cuts/n4/bloks", 3)
    config["calibrations"]["c4"]["samples"] = 0
    config["tables"]["main"]["fits"] = ["ls", "cosine"]
    config["models"]["logs"] = {"source": "x"}
    with refuses(
        "x: cuts.n4.bloks: unknown key", "x: calibrations.c4.samples: ", "x: tables.main.fits: 'cosine' is not defined",
        "x: models.logs: this name is reserved", lines=4,
    ):  # fmt: skip
        parse(config, "x")


@pytest.mark.parametrize("raw", [None, [], "text", 3])
def test_a_config_is_a_mapping(raw, refuses):
    with refuses("expected a mapping of sections"):
        parse(raw)


def test_one_section(refuses):
    assert validated(CutConfig, {"blocks": 2}, "here").blocks == 2
    with refuses("here: top level: give either blocks or ratio"):
        validated(CutConfig, {}, "here")


# ---- reading


def written(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_yaml_is_read_as_usual(tmp_path):
    text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, x: 3}\nlist: [1, 0.5, true, null]\n"
    assert read_yaml(written(tmp_path, text)) == yaml.safe_load(text)
    assert load(written(tmp_path, yaml.safe_dump(GOOD))) == parse(GOOD)


@pytest.mark.parametrize(
    ("text", "key", "first", "again"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", 1, 3),
        ("cuts:\n  n4: {blocks: 4}\n  n6: {blocks: 6}\n  n4: {blocks: 5}\n", "n4", 2, 4),
        ("a: {x: 1,\n  x: 2}\n", "x", 1, 2),
        ("1: a\n1: b\n", 1, 1, 2),
    ],
)
def test_a_key_given_twice_names_both_lines(tmp_path, refuses, text, key, first, again):
    with refuses("config.yaml: ", f"line {again}: key {key!r} again, first on line {first}"):
        read_yaml(written(tmp_path, text))


UNREADABLE = {
    "not YAML": ("a: [1\nb: 2", "line 2: not valid YAML"),
    "tab": ("a:\n\t- 1", "line 2: not valid YAML"),
    "not UTF-8": (b"a: \xff", "not UTF-8 text (byte 3); save it as UTF-8"),
    "control character": (b"a: \x01", "not valid YAML"),
    "NUL": (b"a: \x00", "not UTF-8 text (a NUL at byte 3: UTF-16 without a mark, or binary)"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8 text (UTF-16); save it as UTF-8"),
    "UTF-32": ("a: 1".encode("utf-32"), "not UTF-8 text (UTF-32); save it as UTF-8"),
    "list as a key": ("? [1, 2]\n: x", "line 1: not valid YAML (a list or mapping as a key)"),
    "no such date": ("a: 2001-99-99", "not valid YAML"),
    "tagged number": ("a: !!int x", "not valid YAML"),
    "python object": ("a: !!python/object:os.system {}", "not valid YAML"),
    "huge number": ("a: " + "9" * 5000, "not valid YAML"),
    "nested without end": ("[" * 500, "not valid YAML"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files(tmp_path, refuses, case):
    content, message = UNREADABLE[case]
    with refuses(str(tmp_path / "config.yaml"), message):
        read_yaml(written(tmp_path, content))


def test_missing_file_and_folder(tmp_path, refuses):
    with refuses("no such file"):
        read_yaml(tmp_path / "none.yaml")
    with refuses("cannot read (Is a directory)"):
        read_yaml(tmp_path)


# ---- anything at all

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
KEYS = st.sampled_from([*sorted(Config.model_fields), "tasks", "blocks", "source", "main", "n4"]) | SCALARS
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4))
PATHS = [
    "models", "models/tiny", "models/tiny/source", "calibrations/c4", "calibrations/c4/samples", "calibrations/c4/pack",
    "cuts/n4", "cuts/n4/blocks", "fits/ls", "fits/ls/ridge", "evaluations/quick/tasks", "evaluations/quick/perplexity",
    "tables", "tables/main", "tables/main/cuts", "tables/main/evaluation", "speed", "device", "speed/repeats",
]  # fmt: skip


def accepts_or_refuses(raw):
    try:
        assert isinstance(parse(raw, "x"), Config)
    except ReplaceMeError as error:
        assert all(line.startswith("x: ") for line in str(error).split("\n")), str(error)


@given(ANYTHING)
@example({"a\nb": 1})
@example({"models": 1 << 20_000})
@settings(max_examples=150, deadline=None)
def test_parse_never_crashes(raw):
    accepts_or_refuses(raw)


@given(st.sampled_from(PATHS), ANYTHING)
@settings(max_examples=300, deadline=None)
def test_parse_never_crashes_near_a_good_config(path, value):
    accepts_or_refuses(changed(path, value))


@given(st.binary(max_size=60) | st.text("{}[]:,-?&*!|>'\"%@`#\n\t ab01=<~.e\\x", max_size=40).map(str.encode))
@example(b"&a [*a]")
@example(b"? {a: 1}\n: 2")
@example(b"=: 1")
@example(b"<<: 1")
@example(b"a: !!binary \xc3\xa9")
@example(b"a: !!timestamp x")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_yaml_never_crashes(tmp_path, content):
    path = written(tmp_path, content)
    try:
        accepts_or_refuses(read_yaml(path))
    except ReplaceMeError as error:
        assert str(error).startswith(str(path)) and len(str(error).split("\n")) == 1


@pytest.mark.parametrize(
    "other", [{"ridge_relative": 0.1}, {"transform": "diagonal"}, {"transform": "low_rank", "rank": 1}]
)
def test_an_automatic_ridge_stands_alone(other):
    with pytest.raises(ValueError, match="ridge auto chooses the penalty of a full T; drop the rest"):
        FitConfig(ridge="auto", **other)
    assert FitConfig(ridge="auto", towards="identity").automatic


@pytest.mark.parametrize("transform", sorted(name for name, one in STRUCTURES.items() if one.fitted and not one.ratios))
def test_a_layer_of_its_own_takes_every_structure(transform):
    needed = {"low_rank": {"rank": 2}, "sparse": {"l1": 0.1}}.get(transform, {})
    fit = FitConfig(transform=transform, placement="block", **needed)
    assert fit.regression.kind == "block"
